"""mmsegmentation's ``FCNHead`` (arXiv 1411.4038) with less memory for its loss."""

from __future__ import annotations

from mmseg.models.decode_heads import FCNHead as MMSegFCNHead

from ..registry import MODELS
from .loss import StripwiseLossMixin


@MODELS.register_module()
class FCNHead(StripwiseLossMixin, MMSegFCNHead):
    """mmsegmentation's ``FCNHead``: same arguments, same state dict, same loss."""
