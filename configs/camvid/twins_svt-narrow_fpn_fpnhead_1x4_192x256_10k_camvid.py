"""A narrow Twins-SVT with Semantic FPN, trained from scratch on two CPU cores.

docs/camvid.md has the results and what else was tried.
"""

_base_ = ['../_base_/camvid.py', '../_base_/run.py']
randomness = dict(seed=0)
crop_size = (192, 256)
max_iters = 10_000

embed_dims = [32, 64, 128, 256]
model = dict(
    type='mmseg_twins.EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=crop_size,
    ),
    backbone=dict(
        type='mmseg_twins.SVT',
        arch='small',
        embed_dims=embed_dims,
        num_heads=[1, 2, 4, 8],
        depths=[2, 2, 4, 2],
        drop_path_rate=0.0,
    ),
    neck=dict(
        type='FPN',
        in_channels=embed_dims,
        out_channels=48,
        num_outs=4,
        conv_cfg=dict(type='mmseg_twins.Conv2d'),
    ),
    decode_head=dict(
        type='mmseg_twins.FPNHead',
        in_channels=[48] * 4,
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=48,
        dropout_ratio=0.0,
        num_classes=11,
        norm_cfg=dict(type='BN', requires_grad=True),
        align_corners=False,
        loss_decode=dict(
            type='CrossEntropyLoss',
            avg_non_ignore=True,
            # One over the square root of a class's share of the training pixels,
            # divided by the mean over classes.
            class_weight=[
                0.34,  # sky
                0.29,  # building
                1.42,  # pole
                0.25,  # road
                0.66,  # pavement
                0.45,  # tree
                1.30,  # sign
                1.32,  # fence
                0.58,  # car
                1.76,  # pedestrian
                2.61,  # bicyclist
            ],
        ),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)

train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(
                type='RandomResize',
                scale=_base_.size,
                ratio_range=(0.5, 1.5),
                keep_ratio=True,
            ),
            dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PhotoMetricDistortion'),
            dict(type='PackSegInputs'),
        ],
    ),
)

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.01),
    clip_grad=dict(max_norm=1.0),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=300),
    dict(
        type='CosineAnnealingLR', eta_min=1e-6, by_epoch=False, begin=300, end=max_iters
    ),
]
train_cfg = dict(max_iters=max_iters, val_interval=1000)
default_hooks = dict(checkpoint=dict(interval=1000, max_keep_ckpts=2, save_best='mIoU'))
