_base_ = './_base_/twins_uperhead_160k_ade20k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmseg_twins.PCPVT',
        arch='large',
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint='twins://pcpvt-l'),
    ),
)
