"""Semantic FPN on Cityscapes, 80,000 iterations; a recipe adds backbone and widths.

Optimizer and schedule are those of ADE20K.
"""

_base_ = [
    './cityscapes_512x1024.py',
    'mmseg::_base_/models/twins_pcpvt-s_fpn.py',
    'mmseg::_base_/schedules/schedule_80k.py',
]
data_preprocessor = dict(size=_base_.crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(type='mmseg_twins.FPNHead', num_classes=19),
    # Whole images, 1024x2048 px, are predicted window by window, two thirds apart.
    test_cfg=dict(mode='slide', crop_size=_base_.crop_size, stride=(341, 683)),
)

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=1e-4)
)
# The inherited schedule ends at 1e-4, this recipe's own start, and would never decay.
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=1e-6, begin=0, end=80000, by_epoch=False),
]

# A run that is killed goes on with --resume as if it had not been (docs/resuming.md).
default_hooks = dict(
    checkpoint=dict(type='mmseg_twins.CheckpointHook'),
    resuming=dict(type='mmseg_twins.ExactResume'),
)

# 8 GPUs with 2 images each
train_dataloader = dict(batch_size=2, num_workers=2)
auto_scale_lr = dict(enable=False, base_batch_size=16)
