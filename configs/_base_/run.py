"""How every config here runs: by iterations, with hooks that make a run safe to kill.

A run that is killed goes on with --resume as if it had not been (docs/resuming.md).
"""

train_cfg = dict(type='IterBasedTrainLoop')
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='mmseg_twins.CheckpointHook', by_epoch=False),
    resuming=dict(type='mmseg_twins.ExactResume'),
    numbers=dict(type='mmseg_twins.CheckNumbers'),
    preemption=dict(type='mmseg_twins.Preemption'),
    unreadable=dict(type='mmseg_twins.UnreadableFiles'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
