"""Twins backbones (PCPVT, SVT; arXiv 2104.13840) for mmsegmentation 1.x.

Importing the package, as ``custom_imports = dict(imports=['mmseg_twins'])`` does in
a config, lets mmsegmentation run on current PyTorch (:mod:`mmseg_twins.compat`) and
registers the backbones. ``python -m mmseg_twins`` diagnoses an installation.
"""

from __future__ import annotations

import sys

from .version import __version__

# `python -m mmseg_twins` imports this first, and is there for when the rest of it
# fails. Until Python has found what it is to run, the first argument is `-m`.
if sys.argv[:1] != ['-m'] or sys.orig_argv[-len(sys.argv) :][:1] != [__name__]:
    from . import compat

    compat.activate()  # before anything that imports mmcv or mmsegmentation

    from .models import backbones

__all__ = ['__version__', 'backbones', 'compat']
