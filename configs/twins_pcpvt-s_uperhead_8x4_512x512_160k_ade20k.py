_base_ = './_base_/twins_uperhead_160k_ade20k.py'

checkpoint = 'https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/twins/pcpvt_small_20220308-e638c41c.pth'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmseg_twins.PCPVT',
        arch='small',
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
)

# 8 GPUs with 4 images each
train_dataloader = dict(batch_size=4, num_workers=4)
auto_scale_lr = dict(base_batch_size=32)
