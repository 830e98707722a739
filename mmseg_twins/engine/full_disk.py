"""Logs and drawings that end with a sentence where the disk is full.

mmengine 0.10.7's log prints a traceback for each line that cannot be written, and the
training goes on; its ``LocalVisBackend`` raises an error that names no file, or none at
all for a picture that OpenCV could not write.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
        WritingError: the disk has no room for a file. Lines of a log stay whole, and no
            part of a picture is left.
    """

    def add_config(self, config: Config, **kwargs) -> None:
        """Write the config."""
        self.experiment  # noqa: B018, makes the folder and completes the paths
        with naming(self._config_save_file, 'it is cut off'):
            super().add_config(config, **kwargs)

    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs) -> None:
        """Write a picture, (H, W, 3), RGB, uint8."""
        self.experiment  # noqa: B018, as above
        path = Path(self._img_save_dir, f'{name}_{step}.png')
        path.parent.mkdir(parents=True, exist_ok=True)
        content = cv2.imencode('.png', cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
        with naming(path, 'the pictures before it are whole'):
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
    """Let a logger raise ``WritingError`` where the disk has no room for its file."""
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handleError = FailedLine(handler)  # type: ignore[method-assign]


class FailedLine:
    """Handles the error of a line that could not be written.

    Args:
        handler: of the log's file.
    """

    def __init__(self, handler: logging.FileHandler) -> None:
        self.handler = handler

    def __call__(self, record: logging.LogRecord) -> None:
        """Raise the error, and let no other line be tried."""
        with naming(self.handler.baseFilename, 'the lines before are kept'):
            if isinstance(error := sys.exc_info()[1], OSError):
                self.handler.setLevel(logging.CRITICAL + 1)
                raise error
        logging.Handler.handleError(self.handler, record)


@contextmanager
def naming_last(folder: str | None) -> Iterator[None]:
    """Name the picture that a disk had no room for, and remove what there is of it.

    mmsegmentation's metrics write label maps; Pillow leaves small ones cut off.

    Args:
        folder: where the pictures are written; None if there are none.
    """
    try:
        yield
    except OSError as error:
        if folder is None or error.errno not in NO_ROOM:
            raise
        pictures = sorted(Path(folder).glob('*'), key=lambda one: one.stat().st_mtime)
        # The last ones of several processes.
        torn = [one for one in pictures[-16:] if cv2.imread(str(one)) is None]
        for one in torn:
            one.unlink()
        with naming(torn[-1] if torn else folder, 'the pictures before it are whole'):
            raise
