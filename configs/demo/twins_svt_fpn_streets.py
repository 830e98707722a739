"""A narrow Twins-SVT with Semantic FPN on the quickstart's streets, from scratch.

The scenes are made by `python tools/dataset_converters/street_scenes.py`; training
takes a few minutes on two CPU cores.
"""

_base_ = ['mmseg::_base_/default_runtime.py', '../_base_/run.py']
custom_imports = dict(imports=['mmseg_twins'], allow_failed_imports=False)
randomness = dict(seed=0)

data_root = 'work_dirs/quickstart/data'
classes = ['sky', 'building', 'road', 'pavement', 'grass', 'tree', 'car', 'person']
palette = [
    [126, 184, 230],
    [178, 132, 110],
    [98, 92, 118],
    [222, 202, 164],
    [158, 205, 96],
    [52, 128, 74],
    [228, 78, 72],
    [250, 186, 44],
]
# Whole scenes at 0.7 of their size: at two CPU cores' pace, more scenes seen teach
# more than finer ones.
size = (224, 160)
max_iters = 750

data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255,
    size_divisor=32,
    test_cfg=dict(size_divisor=32),
)
embed_dims = [32, 64, 128, 256]
model = dict(
    type='EncoderDecoder',
    data_preprocessor=data_preprocessor,
    backbone=dict(
        type='mmseg_twins.SVT',
        arch='small',
        embed_dims=embed_dims,
        num_heads=[1, 2, 4, 8],
        depths=[2, 2, 2, 2],
        drop_path_rate=0.0,
    ),
    neck=dict(type='FPN', in_channels=embed_dims, out_channels=64, num_outs=4),
    decode_head=dict(
        type='mmseg_twins.FPNHead',
        in_channels=[64] * 4,
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=64,
        dropout_ratio=0.0,
        num_classes=len(classes),
        norm_cfg=dict(type='BN', requires_grad=True),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=size, keep_ratio=True),
    # Annotations keep their size: predictions are compared at full size.
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
dataset = dict(
    type='BaseSegDataset',
    metainfo=dict(classes=classes, palette=palette),
    # The files number the classes from 1; their 0 is ignored.
    reduce_zero_label=True,
    img_suffix='.jpg',
    seg_map_suffix='.png',
    data_root=data_root,
)
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        data_prefix=dict(
            img_path='images/training', seg_map_path='annotations/training'
        ),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='Resize', scale=size, keep_ratio=True),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackSegInputs'),
        ],
        **dataset,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        data_prefix=dict(
            img_path='images/validation', seg_map_path='annotations/validation'
        ),
        pipeline=test_pipeline,
        **dataset,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=3e-3, weight_decay=0.01),
    clip_grad=dict(max_norm=1.0),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=20),
    dict(
        type='CosineAnnealingLR', eta_min=1e-6, by_epoch=False, begin=20, end=max_iters
    ),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 3)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=max_iters))
