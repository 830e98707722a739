"""mmsegmentation's ``FCNHead`` (arXiv 1411.4038) at less cost."""

from __future__ import annotations

from mmseg.models.decode_heads import FCNHead as MMSegFCNHead

from ...registry import MODELS
from ..conv2d import CONV_CFG
from .loss import CrossEntropyMixin


@MODELS.register_module()
class FCNHead(CrossEntropyMixin, MMSegFCNHead):
    """mmsegmentation's ``FCNHead``: same arguments, state dict, logits and loss."""

    def __init__(self, *args, conv_cfg: dict | None = None, **kwargs) -> None:
        super().__init__(*args, conv_cfg=conv_cfg or CONV_CFG, **kwargs)
