"""What the package raises for mistakes in a config."""

from __future__ import annotations


class SettingError(ValueError):
    """A setting that cannot work.

    The message is one sentence: what was given, what is allowed, what mends it. The
    scripts under ``tools`` show it without a traceback.
    """
