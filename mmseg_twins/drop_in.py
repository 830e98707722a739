"""Replace mmsegmentation's built-in ``PCPVT`` and ``SVT`` with this package's.

For existing configs, in a config of its own::

    _base_ = ['my_config.py']
    custom_imports = dict(imports=['mmseg_twins.drop_in'], allow_failed_imports=False)

mmengine imports the modules that are named in the file: with ``--cfg-options``, this
works in ``mmseg-twins train`` only. Without ``eps`` in ``norm_cfg``, the official
values are used; set ``eps=1e-5`` for the built-in's.
"""

from __future__ import annotations

import inspect

from mmseg.models import backbones as builtin_backbones
from mmseg.registry import MODELS

from .models import backbones


def with_positional_arguments(backbone: type, builtin: type) -> type:
    """Return a subclass that also takes the built-in's arguments by position."""
    names = list(inspect.signature(builtin).parameters)

    def __init__(self, *args, **kwargs) -> None:  # noqa: N807
        backbone.__init__(self, **dict(zip(names, args, strict=False)), **kwargs)

    members = {'__init__': __init__, '__module__': __name__}
    return type(backbone.__name__, (backbone,), members)


PCPVT = with_positional_arguments(backbones.PCPVT, builtin_backbones.PCPVT)
SVT = with_positional_arguments(backbones.SVT, builtin_backbones.SVT)
for replacement in (PCPVT, SVT):
    MODELS.register_module(module=replacement, force=True)
