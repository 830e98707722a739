"""Backbones and decode heads, as mmsegmentation's ``models`` has them."""

from __future__ import annotations

from .backbones import PCPVT, SVT
from .decode_heads import FCNHead, FPNHead, UPerHead

__all__ = ['PCPVT', 'SVT', 'FCNHead', 'FPNHead', 'UPerHead']
