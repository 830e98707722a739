"""Twins backbones (PCPVT, SVT; arXiv 2104.13840) for mmsegmentation 1.x.

Importing the package, as ``custom_imports = dict(imports=['mmseg_twins'])`` does in
a config, lets mmsegmentation run on current PyTorch (:mod:`mmseg_twins.compat`) and
registers the backbones.
"""

from __future__ import annotations

from . import compat
from .version import __version__

compat.activate()  # before anything that imports mmcv or mmsegmentation

from . import backbones  # noqa: E402

__all__ = ['__version__', 'backbones', 'compat']
