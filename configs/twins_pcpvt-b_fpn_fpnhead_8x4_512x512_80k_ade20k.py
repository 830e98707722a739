_base_ = './_base_/twins_fpnhead_80k_ade20k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmseg_twins.PCPVT',
        arch='base',
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='twins://pcpvt-b'),
    ),
)
