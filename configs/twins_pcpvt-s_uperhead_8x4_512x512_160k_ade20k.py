_base_ = './_base_/twins_uperhead_160k_ade20k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmseg_twins.PCPVT',
        arch='small',
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='twins://pcpvt-s'),
    ),
)

# 8 GPUs with 4 images each
train_dataloader = dict(batch_size=4, num_workers=4)
auto_scale_lr = dict(base_batch_size=32)
