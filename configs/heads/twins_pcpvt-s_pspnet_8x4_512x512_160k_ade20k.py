"""PCPVT-S with PSPNet's head and an auxiliary FCN head, trained as with UPerNet.

Only the last two maps are used, at 1/16 and 1/32 of the image, so only these are
returned; `in_index` counts among them.
"""

_base_ = '../twins_pcpvt-s_uperhead_8x4_512x512_160k_ade20k.py'

model = dict(
    backbone=dict(out_indices=(2, 3)),
    decode_head=dict(
        _delete_=True,
        type='PSPHead',
        in_channels=512,
        in_index=1,
        channels=512,
        pool_scales=(1, 2, 3, 6),
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(in_channels=320, in_index=0),
)
