"""Keeps a moving average of the weights, evaluates it and saves it.

`momentum` is the share of the new weights: 0.0002 averages over about the last 5,000
iterations. A checkpoint's `state_dict` is the average, its `ema_state_dict` the
weights that training goes on with.
"""

custom_hooks = [dict(type='EMAHook', momentum=0.0002)]
