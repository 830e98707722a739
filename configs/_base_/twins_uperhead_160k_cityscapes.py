"""UPerNet on Cityscapes, 160,000 iterations; a recipe adds backbone and widths.

Optimizer and schedule are those of ADE20K.
"""

_base_ = [
    './cityscapes_512x1024.py',
    'mmseg::_base_/models/twins_pcpvt-s_upernet.py',
    'mmseg::_base_/schedules/schedule_160k.py',
]
data_preprocessor = dict(size=_base_.crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(type='mmseg_twins.UPerHead', num_classes=19),
    auxiliary_head=dict(type='mmseg_twins.FCNHead', num_classes=19),
    # Whole images, 1024x2048 px, are predicted window by window, two thirds apart.
    test_cfg=dict(mode='slide', crop_size=_base_.crop_size, stride=(341, 683)),
)

optim_wrapper = dict(
    optimizer=dict(
        _delete_=True, type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01
    ),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys={'position_encodings': dict(decay_mult=0.0)},
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=1500, by_epoch=False),
    dict(type='PolyLR', power=1.0, eta_min=0.0, begin=1500, end=160000, by_epoch=False),
]

# A run that is killed goes on with --resume as if it had not been (docs/resuming.md).
default_hooks = dict(
    checkpoint=dict(type='mmseg_twins.CheckpointHook'),
    resuming=dict(type='mmseg_twins.ExactResume'),
)

# 8 GPUs with 1 image each
train_dataloader = dict(batch_size=1, num_workers=2)
auto_scale_lr = dict(enable=False, base_batch_size=8)
