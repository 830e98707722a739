"""Backbones, decode heads and layers, as mmsegmentation's ``models`` has them."""

from __future__ import annotations

from .backbones import PCPVT, SVT
from .conv2d import Conv2d
from .decode_heads import FCNHead, FPNHead, UPerHead

__all__ = ['PCPVT', 'SVT', 'Conv2d', 'FCNHead', 'FPNHead', 'UPerHead']
