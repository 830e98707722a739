_base_ = '../_base_/twins_uperhead_10k_camvid.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmseg_twins.SVT',
        arch='small',
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='twins://svt-s'),
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
