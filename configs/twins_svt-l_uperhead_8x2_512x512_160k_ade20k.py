_base_ = './_base_/twins_uperhead_160k_ade20k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmseg_twins.SVT',
        arch='large',
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint='twins://svt-l'),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
