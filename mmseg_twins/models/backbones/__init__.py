"""Twins backbones: PCPVT and SVT (arXiv 2104.13840)."""

from __future__ import annotations

from .twins import PCPVT, SVT

__all__ = ['PCPVT', 'SVT']
