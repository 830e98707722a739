_base_ = '../_base_/twins_uperhead_10k_camvid.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmseg_twins.PCPVT',
        arch='small',
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='twins://pcpvt-s'),
    ),
)
