"""Twins backbones (PCPVT, SVT; arXiv 2104.13840) for mmsegmentation 1.x.

Importing the package, as ``custom_imports = dict(imports=['mmseg_twins'])`` does in
a config, makes mmsegmentation run on current PyTorch (:mod:`mmseg_twins.compat`) and
registers the backbones. The command ``mmseg-twins`` runs the tools;
``mmseg-twins doctor`` diagnoses an installation.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

from .interrupts import end_at_interrupt
from .version import __version__


def is_command() -> bool:
    """Return whether this process runs ``mmseg-twins`` or ``python -m mmseg_twins``."""
    # Until Python has found the module to run, the first argument is `-m`.
    by_module = sys.argv[:1] == ['-m']
    if by_module:
        return sys.orig_argv[-len(sys.argv)] == __name__
    return Path(*sys.argv[:1]).stem == 'mmseg-twins'


def is_program() -> bool:
    """Return whether this process runs a command, or a script of ``tools``."""
    script = Path(*sys.argv[:1]).resolve()
    here = Path(__file__).resolve()
    folders = (here.parents[1] / 'tools', (here.parent / '.mim' / 'tools').resolve())
    is_tool = script.suffix == '.py' and any(map(script.is_relative_to, folders))
    return is_tool or is_command() or script.stem == 'twins2mmseg'


if is_program():
    end_at_interrupt()  # before the imports, which take seconds
    # What OpenMMLab's packages do, and no user can change; other programs are warned.
    for message in (
        'pkg_resources is deprecated',
        '``build_loss`` would be deprecated',
        '`broadcast_buffers` is deprecated',
        'The draw is False',  # the visualization hook without --show-dir
    ):
        warnings.filterwarnings('ignore', message)

# The command imports the rest itself: it diagnoses installations where that fails.
if not is_command():
    from . import compat

    compat.activate()  # before anything that imports mmcv or mmsegmentation

    from .models import backbones

__all__ = ['__version__', 'backbones', 'compat']
