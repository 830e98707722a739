"""One clear error if the disk is full for logs and drawings.

mmengine 0.10.7's logger prints a traceback for each line that cannot be written, and
the training goes on; its ``LocalVisBackend`` raises an error that names no file, or
none at all for an image that OpenCV could not write.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.visualization import LocalVisBackend as MMEngineLocalVisBackend

from ..checkpoints.writing import NO_ROOM, naming
from ..registry import VISBACKENDS


@VISBACKENDS.register_module()
class LocalVisBackend(MMEngineLocalVisBackend):
    """mmengine's ``LocalVisBackend``: same arguments and files.

    Raises:
        WritingError: the disk is full. Incomplete lines and images are removed.
    """

    def add_config(self, config: Config, **kwargs) -> None:
        """Write the config."""
        self.experiment  # noqa: B018, makes the folder and completes the paths
        with naming(self._config_save_file, 'it is cut off'):
            super().add_config(config, **kwargs)

    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs) -> None:
        """Write an image, (H, W, 3) uint8, RGB."""
        self.experiment  # noqa: B018, as above
        path = Path(self._img_save_dir, f'{name}_{step}.png')
        path.parent.mkdir(parents=True, exist_ok=True)
        content = cv2.imencode('.png', cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
        with naming(path, 'the images before it are complete'):
            try:
                path.write_bytes(content.tobytes())
            except OSError:
                path.unlink(missing_ok=True)
                raise

    def _dump(self, value_dict: dict, file_path: str, file_format: str) -> None:
        size = os.path.getsize(file_path) if os.path.exists(file_path) else 0
        with naming(file_path, 'the lines before are kept'):
            try:
                super()._dump(value_dict, file_path, file_format)
            except OSError:
                os.truncate(file_path, size)
                raise


def raise_if_full(logger: logging.Logger) -> None:
    """Let a logger raise ``WritingError`` if the disk is full."""
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handleError = partial(handle_error, handler)  # type: ignore[method-assign]


def handle_error(handler: logging.FileHandler, record: logging.LogRecord) -> None:
    """Raise the error of a line that could not be written, and disable the handler."""
    with naming(handler.baseFilename, 'the lines before are kept'):
        if isinstance(error := sys.exc_info()[1], OSError):
            handler.setLevel(logging.CRITICAL + 1)
            raise error
    logging.Handler.handleError(handler, record)


@contextmanager
def naming_last(folder: str | None) -> Iterator[None]:
    """Name the label map that was written last if the disk is full, and remove it.

    mmsegmentation's metrics write label maps with Pillow, which leaves incomplete files
    behind.

    Args:
        folder: the folder of the label maps; None if none are written.
    """
    try:
        yield
    except OSError as error:
        if folder is None or error.errno not in NO_ROOM:
            raise
        files = sorted(Path(folder).glob('*'), key=lambda file: file.stat().st_mtime)
        # Several processes may each have left one.
        torn = [file for file in files[-16:] if cv2.imread(str(file)) is None]
        for file in torn:
            file.unlink()
        with naming(torn[-1] if torn else folder, 'the files before it are complete'):
            raise
