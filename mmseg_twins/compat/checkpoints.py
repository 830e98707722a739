"""Lets mmengine read checkpoints with the package's reader.

PyTorch 2.6 and later refuse classes that a checkpoint names and that nobody has
allowed, such as those in mmengine's own checkpoints; mmengine's downloads allow
anything.
"""

from __future__ import annotations

import os
from pathlib import Path

from mmengine.runner import CheckpointLoader, checkpoint

from ..checkpoints.downloading import fetch
from ..checkpoints.pickles import allow_harmless_classes
from ..checkpoints.reading import read_checkpoint


def patch_loaders() -> None:
    """Replace mmengine's loader of local files, and its function for downloads."""
    allow_harmless_classes()  # also for who calls `torch.load` directly
    CheckpointLoader.register_scheme(prefixes='', loader=load_from_local, force=True)
    checkpoint.load_url = load_url


def load_from_local(filename: str, map_location=None) -> dict:
    """Read a local file; mmengine's log names the loader from its tenth letter on.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it cannot be read.
    """
    path = Path(os.path.expanduser(filename))
    if not path.is_file():
        raise FileNotFoundError(f'{path} can not be found.')
    return read_checkpoint(path, map_location)


def load_url(
    url: str, model_dir: str | None = None, map_location=None, progress: bool = True
) -> dict:
    """Download a file, unless an earlier download is there, and read it.

    The arguments are those of ``torch.hub.load_state_dict_from_url``.

    Raises:
        OSError: it cannot be downloaded.
        CheckpointError: it cannot be read.
    """
    folder = Path(model_dir) if model_dir else None
    return read_checkpoint(fetch(url, folder, progress=progress), map_location)
