"""SVT-S with DeepLabV3+'s head (ASPP) and an auxiliary FCN head, as with UPerNet.

The dilations see as far as 12, 24 and 36 do on a map at 1/8 of the image: the last
map of Twins is at 1/32.
"""

_base_ = '../twins_svt-s_uperhead_8x2_512x512_160k_ade20k.py'

model = dict(
    decode_head=dict(
        _delete_=True,
        type='DepthwiseSeparableASPPHead',
        in_channels=512,
        in_index=3,
        channels=512,
        dilations=(1, 3, 6, 9),
        c1_in_channels=64,
        c1_channels=48,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
)
