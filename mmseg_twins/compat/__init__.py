"""Make mmsegmentation run on current PyTorch, with or without mmcv's ops.

:func:`activate`, called when ``mmseg_twins`` is imported, checks the installed versions
and then applies these patches:

* ``configs``: mmengine finds mmsegmentation under the name of the installed
  distribution (:mod:`.configs`);
* ``find_loader``: mmengine and mmcv run on Python 3.14 (:mod:`.find_loader`);
* ``ops``: for an mmcv without compiled ops, a stand-in for ``mmcv.ops``, which four
  modules of mmsegmentation import whether they use it or not (:mod:`.ops`);
* ``checkpoints``: mmengine reads checkpoints with
  :mod:`mmseg_twins.checkpoints.reading`: safely, and in the safetensors format too
  (:mod:`.checkpoints`);
* ``torch_load``: so do the functions of onedl-mmengine that would run code in a
  checkpoint (:mod:`.torch_load`);
* ``cpu_processes``: mmengine trains in several processes without an accelerator
  (:mod:`.cpu_processes`);
* ``fsdp``: mmengine's FSDPStrategy resumes, and trains without an accelerator
  (:mod:`.fsdp`).

The environment variable ``MMSEG_TWINS_COMPAT`` selects patches: ``ops,checkpoints``
applies these two, ``0`` none, and ``1``, the default, all. The logger
``mmseg_twins.compat`` reports them at level debug. :mod:`.hook` applies them if nothing
imports ``mmseg_twins``.
"""

from __future__ import annotations

import functools
import importlib
import os

from ..errors import SettingError
from .hook import SETTING, is_chosen
from .versions import check_versions

# The functions that apply the patches, each in the module of that name. These modules
# import mmcv and mmengine, whose versions must be checked first.
PATCHES = {
    'configs': 'patch_inheritance',
    'find_loader': 'add_to_pkgutil',
    'ops': 'install_stand_in',
    'checkpoints': 'patch_loaders',
    'torch_load': 'patch_fallback',
    'cpu_processes': 'patch_runners',
    'fsdp': 'patch_strategy',
}


@functools.cache
def activate() -> bool:
    """Apply the selected patches once per process; later calls do nothing.

    Returns:
        Whether compat is active: False if ``MMSEG_TWINS_COMPAT`` is ``0``.

    Raises:
        SettingError: ``MMSEG_TWINS_COMPAT`` names a patch that does not exist.
        ImportError: a package of mmsegmentation's stack is missing or has an
            unsupported version; the message has the command that fixes it.
    """
    setting = os.environ.get(SETTING) or '1'
    if setting == '0':
        return False
    unknown = set(setting.split(',')) - {'1', *PATCHES}
    if unknown:
        raise SettingError(
            f'{SETTING}={setting}: there is no patch {min(unknown)!r}; give some of '
            f'{", ".join(PATCHES)}, or 0 for none, or 1 for all'
        )
    check_versions()
    for name, function in PATCHES.items():
        if is_chosen(name):
            getattr(importlib.import_module(f'.{name}', __name__), function)()
    return True


__all__ = ['activate']
