"""A stand-in for ``mmcv.ops`` where the installed mmcv has no compiled ops.

That is mmcv-lite, and onedl-mmcv unless torch was available when it was built. Four
modules of mmsegmentation 1.2.2 import from ``mmcv.ops`` unguarded (``point_sample``,
which is pure PyTorch, and ``sigmoid_focal_loss``), so that ``mmseg.models`` cannot be
imported without compiled ops. Other imports are guarded by ``except
ModuleNotFoundError``, which the stand-in raises.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import warnings
from pathlib import Path
from types import ModuleType

import mmcv
from mmcv.utils import ext_loader

from .versions import version

LOG = logging.getLogger(__package__)
BUILD_MMCV = "pip uninstall -y mmcv-lite && pip install 'mmcv<2.2' --no-build-isolation"
BUILD_FORK = (
    'pip install --force-reinstall --no-deps --no-build-isolation --no-cache-dir '
    'onedl-mmcv'
)


def missing(name: str) -> ModuleNotFoundError:
    """Return the error for ops that need compiled code."""
    command = BUILD_FORK if version('onedl-mmcv') else BUILD_MMCV
    return ModuleNotFoundError(
        f'mmcv.ops.{name} needs compiled code, which the installed mmcv does not have; '
        f'replace it with full mmcv: {command}'
    )


def load_ext(name: str, funcs: list[str]) -> ModuleType:
    """Replace the function with which mmcv's ops load their compiled code."""
    raise missing(funcs[0])


def sigmoid_focal_loss(*args, **kwargs):
    """Replace the compiled focal loss, which only CUDA tensors use."""
    raise missing('sigmoid_focal_loss')


class StandIn(ModuleType):
    """The part of ``mmcv.ops`` that works without compiled code."""

    def __getattr__(self, name: str):
        # Python itself looks for dunder names and expects AttributeError.
        if name.startswith('__'):
            raise AttributeError(f'module {self.__name__!r} has no {name!r}')
        raise missing(name)


def has_compiled_ops() -> bool:
    """Return whether the installed mmcv has its compiled extension."""
    return importlib.util.find_spec('mmcv._ext') is not None


def install_stand_in() -> None:
    """Put the stand-in at ``sys.modules['mmcv.ops']``, unless mmcv has ops."""
    if has_compiled_ops() or 'mmcv.ops' in sys.modules:
        return
    module = StandIn('mmcv.ops', doc=__doc__)
    # Submodules in pure Python can still be imported from mmcv's folder.
    module.__path__ = [str(Path(mmcv.__file__).parent / 'ops')]
    sys.modules['mmcv.ops'] = mmcv.ops = module
    ext_loader.load_ext = load_ext
    point_sample = importlib.import_module('mmcv.ops.point_sample')
    # Importing the submodule has set this attribute to the submodule.
    module.point_sample = point_sample.point_sample
    module.sigmoid_focal_loss = sigmoid_focal_loss
    with warnings.catch_warnings():
        # It warns about a missing op that is not used.
        warnings.filterwarnings('ignore', 'Fail to import ``MultiScaleDeformable')
        importlib.import_module('mmcv.cnn.bricks.transformer')
    LOG.debug('ops: mmcv has no compiled ops, and mmcv.ops is a stand-in')
