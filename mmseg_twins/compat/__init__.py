"""Let mmsegmentation 1.2.2 run on current PyTorch, with or without mmcv's ops.

:func:`activate`, called when ``mmseg_twins`` is imported, checks the installed versions
and then applies these patches:

* :mod:`.ops`: with mmcv-lite, a stand-in for ``mmcv.ops``, which four modules of
  mmsegmentation import whether they use it or not;
* :mod:`.checkpoints`: mmengine reads checkpoints with
  :mod:`mmseg_twins.checkpoints.reading`: safely, and in the safetensors format too;
* :mod:`.cpu_processes`: mmengine trains in several processes without an accelerator;
* :mod:`.fsdp`: mmengine's FSDPStrategy resumes, and trains without an accelerator.

``MMSEG_TWINS_COMPAT=0`` in the environment switches all of them off.
"""

from __future__ import annotations

import functools
import os

from .versions import check_versions


@functools.cache
def activate() -> bool:
    """Apply the patches once in a process; later calls do nothing.

    Returns:
        Whether compat is active: False if ``MMSEG_TWINS_COMPAT`` is ``0``.

    Raises:
        ImportError: mmcv or mmsegmentation is missing or of an unsupported version;
            the message has the command that fixes it.
    """
    if os.environ.get('MMSEG_TWINS_COMPAT') == '0':
        return False
    check_versions()
    # These import mmcv and mmengine, whose versions have to be checked first.
    from . import checkpoints, cpu_processes, fsdp, ops

    ops.install_stand_in()
    checkpoints.patch_loaders()
    cpu_processes.patch_runner()
    cpu_processes.patch_strategies()
    fsdp.patch_strategy()
    return True


__all__ = ['activate']
