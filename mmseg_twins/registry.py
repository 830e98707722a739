"""Registries with scope ``mmseg_twins``, children of mmengine's.

Configs refer to these modules with the scope in front, such as
``dict(type='mmseg_twins.SVT', arch='small')``; mmengine then imports this module
automatically.
"""

from __future__ import annotations

from mmengine import registry
from mmengine.registry import Registry

SCOPE = 'mmseg_twins'
ENGINE, EVALUATION = 'mmseg_twins.engine', 'mmseg_twins.evaluation'

MODELS = Registry(
    'model',
    parent=registry.MODELS,
    scope=SCOPE,
    locations=[
        'mmseg_twins.models.backbones',
        'mmseg_twins.models.conv2d',
        'mmseg_twins.models.decode_heads',
        'mmseg_twins.models.segmentors',
    ],
)
DATASETS = Registry('dataset', parent=registry.DATASETS, scope=SCOPE)
OPTIM_WRAPPERS = Registry(
    'optim_wrapper', parent=registry.OPTIM_WRAPPERS, scope=SCOPE, locations=[ENGINE]
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=registry.OPTIM_WRAPPER_CONSTRUCTORS,
    scope=SCOPE,
    locations=[ENGINE],
)
METRICS = Registry(
    'metric', parent=registry.METRICS, scope=SCOPE, locations=[EVALUATION]
)
HOOKS = Registry(
    'hook', parent=registry.HOOKS, scope=SCOPE, locations=[ENGINE, EVALUATION]
)
VISBACKENDS = Registry(
    'vis_backend', parent=registry.VISBACKENDS, scope=SCOPE, locations=[ENGINE]
)
