_base_ = './_base_/twins_uperhead_160k_ade20k.py'

checkpoint = 'https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/twins/pcpvt_base_20220308-0621964c.pth'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmseg_twins.PCPVT',
        arch='base',
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
)
