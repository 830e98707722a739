_base_ = './_base_/twins_fpnhead_80k_ade20k.py'

checkpoint = 'https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/twins/alt_gvt_large_20220308-fb5936f3.pth'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmseg_twins.SVT',
        arch='large',
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
