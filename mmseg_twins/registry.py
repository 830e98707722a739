"""Registries with scope ``mmseg_twins``, children of mmengine's.

Configs refer to these modules with the scope in front, such as
``dict(type='mmseg_twins.SVT', arch='small')``; mmengine then imports this module
automatically.
"""

from __future__ import annotations

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_CONSTRUCTORS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import VISBACKENDS as MMENGINE_VISBACKENDS
from mmengine.registry import Registry

SCOPE = 'mmseg_twins'

MODELS = Registry(
    'model',
    parent=MMENGINE_MODELS,
    scope=SCOPE,
    locations=[
        'mmseg_twins.models.backbones',
        'mmseg_twins.models.conv2d',
        'mmseg_twins.models.decode_heads',
        'mmseg_twins.models.segmentors',
    ],
)
DATASETS = Registry('dataset', parent=MMENGINE_DATASETS, scope=SCOPE)
OPTIM_WRAPPERS = Registry(
    'optim_wrapper',
    parent=MMENGINE_OPTIM_WRAPPERS,
    scope=SCOPE,
    locations=['mmseg_twins.engine'],
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_CONSTRUCTORS,
    scope=SCOPE,
    locations=['mmseg_twins.engine'],
)
METRICS = Registry(
    'metric',
    parent=MMENGINE_METRICS,
    scope=SCOPE,
    locations=['mmseg_twins.evaluation'],
)
HOOKS = Registry(
    'hook',
    parent=MMENGINE_HOOKS,
    scope=SCOPE,
    locations=['mmseg_twins.engine', 'mmseg_twins.evaluation'],
)
VISBACKENDS = Registry(
    'vis_backend',
    parent=MMENGINE_VISBACKENDS,
    scope=SCOPE,
    locations=['mmseg_twins.engine'],
)
