"""mmsegmentation's ``FPNHead`` (arXiv 1901.02446) with less memory for its loss."""

from __future__ import annotations

from mmseg.models.decode_heads import FPNHead as MMSegFPNHead

from ..registry import MODELS
from .loss import StripwiseLossMixin


@MODELS.register_module()
class FPNHead(StripwiseLossMixin, MMSegFPNHead):
    """mmsegmentation's ``FPNHead``: same arguments, same state dict, same loss."""
