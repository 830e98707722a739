"""Replaces mmsegmentation's built-in ``PCPVT`` and ``SVT`` by this package's.

For configs that nobody wants to edit::

    mim train mmsegmentation CONFIG --cfg-options \
        custom_imports.imports="['mmseg_twins.drop_in']"

or ``custom_imports = dict(imports=['mmseg_twins.drop_in'])`` in a config. A
``norm_cfg`` without ``eps`` means the official values here; add ``eps=1e-5`` for the
built-in's.
"""

from __future__ import annotations

import mmseg.models  # noqa: F401, registers the built-in classes that are replaced
from mmseg.registry import MODELS

from .models.backbones import PCPVT, SVT

for backbone in (PCPVT, SVT):
    MODELS.register_module(module=backbone, force=True)
