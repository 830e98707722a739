"""Converts Twins checkpoints of every layout in circulation, and verifies them.

:func:`convert_state_dict` works on tensors, :func:`convert_checkpoint` on files; the
command ``twins2mmseg`` is a face of the latter. The rules are data in :mod:`.rules`.
"""

from __future__ import annotations

from .checkpoint import convert_checkpoint
from .conversion import convert_state_dict
from .errors import ConversionError
from .report import Report

__all__ = ['ConversionError', 'Report', 'convert_checkpoint', 'convert_state_dict']
