"""Replace mmsegmentation's built-in ``PCPVT`` and ``SVT`` with this package's.

To keep existing configs unchanged::

    mim train mmsegmentation CONFIG --cfg-options \
        custom_imports.imports="['mmseg_twins.drop_in']"

or ``custom_imports = dict(imports=['mmseg_twins.drop_in'])`` in a config. Without
``eps`` in ``norm_cfg``, the official values are used; set ``eps=1e-5`` for the
built-in's.
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
