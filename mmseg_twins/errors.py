"""The package's exceptions; the message of each is one sentence.

The commands print it without a traceback.
"""

from __future__ import annotations

from pickle import UnpicklingError


class SettingError(ValueError):
    """A setting cannot work: the message has its value, what is allowed, and a fix."""


class CheckpointError(ValueError, UnpicklingError):
    """A checkpoint cannot be read, converted or loaded."""


class TrainingError(RuntimeError):
    """A training cannot continue: the message says why, and how to resume it."""


class DataError(RuntimeError):
    """An image or a mask cannot be read."""


class WritingError(OSError):
    """The disk is full: the message names the file and what is kept."""
