"""UPerNet, 160,000 iterations, on any data: heads, optimizer, schedule and hooks."""

_base_ = [
    'mmseg::_base_/models/twins_pcpvt-s_upernet.py',
    './run.py',
]
checkpoint = None  # mmsegmentation's is a URL that no longer works
# These compute what mmsegmentation's of the same name do, at less cost.
model = dict(
    type='mmseg_twins.EncoderDecoder',
    decode_head=dict(type='mmseg_twins.UPerHead'),
    auxiliary_head=dict(type='mmseg_twins.FCNHead'),
)

# Norms are found by their type, so that the batch norms of the heads, whose name is
# `bn`, are left out of weight decay as well.
optim_wrapper = dict(
    type='OptimWrapper',
    clip_grad=None,
    optimizer=dict(type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys={'position_encodings': dict(decay_mult=0.0)},
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=1500, by_epoch=False),
    dict(type='PolyLR', power=1.0, eta_min=0.0, begin=1500, end=160000, by_epoch=False),
]
train_cfg = dict(max_iters=160000, val_interval=16000)
default_hooks = dict(checkpoint=dict(interval=16000))
