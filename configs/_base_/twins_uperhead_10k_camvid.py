"""UPerNet on CamVid, 10,000 iterations from ImageNet weights.

Optimizer and learning rate are those of ADE20K. A config adds backbone and widths.
"""

_base_ = ['./camvid.py', './twins_uperhead_160k.py']
crop_size = (360, 360)
data_preprocessor = dict(size=crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(num_classes=11),
    auxiliary_head=dict(num_classes=11),
)

# 1 GPU with 16 images
train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(
                type='RandomResize',
                scale=_base_.size,
                ratio_range=(0.5, 2.0),
                keep_ratio=True,
            ),
            dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PhotoMetricDistortion'),
            dict(type='PackSegInputs'),
        ],
    ),
)
auto_scale_lr = dict(enable=False, base_batch_size=16)

max_iters = 10_000
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=500, by_epoch=False),
    dict(
        type='PolyLR', power=1.0, eta_min=0.0, begin=500, end=max_iters, by_epoch=False
    ),
]
train_cfg = dict(max_iters=max_iters, val_interval=1000)
default_hooks = dict(checkpoint=dict(interval=1000, max_keep_ckpts=2, save_best='mIoU'))
