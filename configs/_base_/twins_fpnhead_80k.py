"""Semantic FPN, 80,000 iterations, on any data: head, optimizer, schedule and hooks."""

_base_ = [
    'mmseg::_base_/models/twins_pcpvt-s_fpn.py',
    'mmseg::_base_/schedules/schedule_80k.py',
]
# These compute what mmsegmentation's of the same name and PyTorch's convolutions do, at
# less cost.
model = dict(
    type='mmseg_twins.EncoderDecoder',
    neck=dict(conv_cfg=dict(type='mmseg_twins.Conv2d')),
    decode_head=dict(type='mmseg_twins.FPNHead'),
)

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=1e-4)
)
# The inherited schedule ends at 1e-4, this config's own start, and would never decay.
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=1e-6, begin=0, end=80000, by_epoch=False),
]

# A run that is killed goes on with --resume as if it had not been (docs/resuming.md).
default_hooks = dict(
    checkpoint=dict(type='mmseg_twins.CheckpointHook'),
    resuming=dict(type='mmseg_twins.ExactResume'),
    numbers=dict(type='mmseg_twins.CheckNumbers'),
    preemption=dict(type='mmseg_twins.Preemption'),
    unreadable=dict(type='mmseg_twins.UnreadableFiles'),
)
