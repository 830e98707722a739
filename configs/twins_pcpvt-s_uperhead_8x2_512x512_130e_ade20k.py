_base_ = './twins_pcpvt-s_uperhead_8x4_512x512_160k_ade20k.py'

# SSSegmentation's setting: 130 epochs of 20,210 images in batches of 16
max_iters = 130 * 20210 // 16

model = dict(
    backbone=dict(norm_cfg=dict(type='LN', eps=1e-5)),
    # Twice as wide as in the five other configs, as the published checkpoint is
    decode_head=dict(channels=1024),
    auxiliary_head=dict(channels=512),
)
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = max_iters
train_cfg = dict(max_iters=max_iters)

# 8 GPUs with 2 images each
train_dataloader = dict(batch_size=2, num_workers=2)
auto_scale_lr = dict(base_batch_size=16)
