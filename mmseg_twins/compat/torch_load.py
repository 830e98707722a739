"""Make all of onedl-mmengine's loaders read checkpoints with the package's reader.

Their shared function runs the code in a checkpoint if PyTorch refuses to load it.
:mod:`.checkpoints` replaces the loader of local files, but not those of other sources,
nor direct calls.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from mmengine.runner import checkpoint

from ..checkpoints.reading import read_checkpoint

LOG = logging.getLogger(__package__)


def patch_fallback() -> None:
    """Replace the function if mmengine has it."""
    if hasattr(checkpoint, '_safe_torch_load'):
        checkpoint._safe_torch_load = load
        LOG.debug('torch_load: no checkpoint is loaded with weights_only=False')


def load(file, map_location=None, weights_only: bool | None = None) -> dict:
    """Read a checkpoint, whatever ``weights_only`` says.

    Args:
        file: a path, or a file that is open for reading.
        map_location: as in ``torch.load``.
        weights_only: ignored; the replaced function has this argument.
    """
    if isinstance(file, (str, os.PathLike)):
        return read_checkpoint(Path(file).expanduser(), map_location)
    with TemporaryDirectory() as folder:
        path = Path(folder, 'checkpoint')
        with path.open('wb') as copy:
            shutil.copyfileobj(file, copy)
        return read_checkpoint(path, map_location)
