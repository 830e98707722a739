"""mmsegmentation's ``FCNHead`` (arXiv 1411.4038) at less cost."""

from __future__ import annotations

from mmseg.models.decode_heads import FCNHead as MMSegFCNHead

from ...ops.conv3x3 import CONV_CFG
from ...registry import MODELS
from .loss import StripwiseLossMixin


@MODELS.register_module()
class FCNHead(StripwiseLossMixin, MMSegFCNHead):
    """mmsegmentation's ``FCNHead``: same arguments, same state dict, same loss."""

    def __init__(self, *args, conv_cfg: dict | None = None, **kwargs) -> None:
        super().__init__(*args, conv_cfg=conv_cfg or CONV_CFG, **kwargs)
