"""The same training with mmsegmentation's own Twins, head and segmentor, to compare.

Without weights of classes: the loss of mmsegmentation 1.2.2 looks them up for ignored
pixels as well, and fails at class 255.
"""

_base_ = ['./twins_svt-narrow_fpn_fpnhead_1x4_192x256_10k_camvid.py']

model = dict(
    type='EncoderDecoder',
    backbone=dict(
        _delete_=True,
        type='SVT',
        embed_dims=_base_.embed_dims,
        num_heads=[1, 2, 4, 8],
        mlp_ratios=[4, 4, 4, 4],
        depths=[2, 2, 4, 2],
        sr_ratios=[8, 4, 2, 1],
        windiow_sizes=[7, 7, 7, 7],
        qkv_bias=True,
        norm_after_stage=True,
        drop_path_rate=0.0,
    ),
    neck=dict(conv_cfg=None),
    decode_head=dict(type='FPNHead', loss_decode=dict(class_weight=None)),
)
