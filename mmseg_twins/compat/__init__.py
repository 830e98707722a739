"""Lets mmsegmentation 1.2.2 run on current PyTorch, with or without mmcv's ops.

:func:`activate`, called when ``mmseg_twins`` is imported, checks the versions that
it stands on and then does what is needed and no more:

* :mod:`.ops`: with mmcv-lite, a stand-in for ``mmcv.ops``, which four modules of
  mmsegmentation import whether they use it or not;
* :mod:`.checkpoints`: mmengine reads checkpoints with
  :mod:`mmseg_twins.checkpoints.reading`: safely, safetensors included;
* :mod:`.cpu_processes`: mmengine's runner trains in several processes on machines
  without an accelerator;
* :mod:`.fsdp`: mmengine's FSDPStrategy resumes, and trains on such machines too.

``MMSEG_TWINS_COMPAT=0`` in the environment switches all of it off.
"""

from __future__ import annotations

import functools
import os

from .versions import check_versions


@functools.cache
def activate() -> bool:
    """Do all of the above, once in a process; later calls do nothing.

    Returns:
        Whether compat is active: False if ``MMSEG_TWINS_COMPAT`` is ``0``.

    Raises:
        ImportError: mmcv or mmsegmentation is missing or of a version that cannot
            work; the message has the command that mends it.
    """
    if os.environ.get('MMSEG_TWINS_COMPAT') == '0':
        return False
    check_versions()
    # These import mmcv and mmengine, whose versions had to be looked at first.
    from . import checkpoints, cpu_processes, fsdp, ops

    ops.install_stand_in()
    checkpoints.patch_loaders()
    cpu_processes.patch_runner()
    cpu_processes.patch_strategies()
    fsdp.patch_strategy()
    return True


__all__ = ['activate']
