"""Semantic FPN, 80,000 iterations, on any data: head, optimizer, schedule and hooks."""

_base_ = [
    'mmseg::_base_/models/twins_pcpvt-s_fpn.py',
    './run.py',
]
checkpoint = None  # mmsegmentation's is a URL that no longer works
# These compute what mmsegmentation's of the same name and PyTorch's convolutions do, at
# less cost.
model = dict(
    type='mmseg_twins.EncoderDecoder',
    neck=dict(conv_cfg=dict(type='mmseg_twins.Conv2d')),
    decode_head=dict(type='mmseg_twins.FPNHead'),
)

optim_wrapper = dict(
    type='OptimWrapper',
    clip_grad=None,
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=1e-4),
)
# mmsegmentation's ends at 1e-4, where this one starts, and would never decay.
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=1e-6, begin=0, end=80000, by_epoch=False),
]
train_cfg = dict(max_iters=80000, val_interval=8000)
default_hooks = dict(checkpoint=dict(interval=8000))
