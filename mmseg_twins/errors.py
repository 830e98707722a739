"""What the package raises by itself; each message is one sentence.

The commands show these without a traceback.
"""

from __future__ import annotations

from pickle import UnpicklingError


class SettingError(ValueError):
    """A setting that cannot work: what was given, what is allowed, what mends it."""


class CheckpointError(ValueError, UnpicklingError):
    """A checkpoint that cannot be read, converted or loaded."""


class TrainingError(RuntimeError):
    """A training that cannot go on: what happened, and what there is to go on from."""


class DataError(RuntimeError):
    """An image or a mask that cannot be read."""


class WritingError(OSError):
    """A file for which the disk has no room: which, and what is kept."""
