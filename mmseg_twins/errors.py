"""What the package raises for mistakes of its users; each message is one sentence.

The commands show these without a traceback.
"""

from __future__ import annotations

from pickle import UnpicklingError


class SettingError(ValueError):
    """A setting that cannot work: what was given, what is allowed, what mends it."""


class CheckpointError(ValueError, UnpicklingError):
    """A checkpoint that cannot be read, converted or loaded."""
