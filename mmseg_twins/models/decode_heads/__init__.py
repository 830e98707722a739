"""mmsegmentation's decode heads at less cost."""

from __future__ import annotations

from .fcn_head import FCNHead
from .fpn_head import FPNHead
from .uper_head import UPerHead

__all__ = ['FCNHead', 'FPNHead', 'UPerHead']
