"""What is raised where a checkpoint cannot be converted."""

from __future__ import annotations


class ConversionError(ValueError):
    """A checkpoint that is not what it should be; the message is one sentence."""
