"""Make mmengine read checkpoints, and names of weights, with the package's reader.

PyTorch 2.6 and later refuse the classes in mmengine's own checkpoints unless they are
allowed one by one; for downloads, mmengine allows any class.
"""

from __future__ import annotations

import logging
from pathlib import Path

from mmengine.runner import CheckpointLoader, checkpoint

from ..checkpoints.pickles import allow_harmless_classes
from ..checkpoints.reading import read_checkpoint
from ..checkpoints.weights import SCHEME

LOG = logging.getLogger(__package__)


def patch_loaders() -> None:
    """Replace mmengine's loader of local files, and its function for downloads."""
    allow_harmless_classes()  # for direct calls of `torch.load`
    CheckpointLoader.register_scheme(prefixes='', loader=load_from_local, force=True)
    CheckpointLoader.register_scheme(prefixes=SCHEME, loader=load_from_twins)
    checkpoint.load_url = load_url
    LOG.debug('checkpoints: files, downloads and names are read safely')


def load_from_local(filename: str, map_location=None) -> dict:
    """Read a local file; mmengine logs ``local``, the end of this function's name."""
    return read_checkpoint(Path(filename).expanduser(), map_location)


def load_from_twins(filename: str, map_location=None) -> dict:
    """Read published weights, such as ``twins://svt-s``."""
    return read_checkpoint(locate(filename), map_location)


def load_url(
    url: str, model_dir: str | None = None, map_location=None, progress: bool = True
) -> dict:
    """Replace ``torch.hub.load_state_dict_from_url``, with the same arguments."""
    folder = Path(model_dir) if model_dir else None
    return read_checkpoint(locate(url, folder, progress=progress), map_location)


def locate(*args, **kwargs) -> Path:
    """Find a checkpoint."""
    # This imports mmsegmentation, which needs the other patches.
    from ..checkpoints import locating

    return locating.locate(*args, **kwargs)
