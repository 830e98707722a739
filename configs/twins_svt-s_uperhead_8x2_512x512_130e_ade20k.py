_base_ = './twins_svt-s_uperhead_8x2_512x512_160k_ade20k.py'

# SSSegmentation's setting: 130 epochs of 20,210 images in batches of 16
max_iters = 130 * 20210 // 16

model = dict(
    backbone=dict(norm_cfg=dict(type='LN', eps=1e-5)),
    auxiliary_head=dict(channels=512),
)
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = max_iters
train_cfg = dict(max_iters=max_iters)
