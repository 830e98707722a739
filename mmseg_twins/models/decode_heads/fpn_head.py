"""mmsegmentation's ``FPNHead`` (Semantic FPN, arXiv 1901.02446) at less cost."""

from __future__ import annotations

from collections.abc import Sequence

from mmseg.models.decode_heads import FPNHead as MMSegFPNHead
from mmseg.models.utils import Upsample
from torch import Tensor, nn
from torch.nn import functional as F

from ...registry import MODELS
from ..conv2d import CONV_CFG
from .loss import CrossEntropyMixin


@MODELS.register_module()
class FPNHead(CrossEntropyMixin, MMSegFPNHead):
    """mmsegmentation's ``FPNHead``: same arguments, state dict, logits and loss.

    Unlike in mmsegmentation, sizes of maps do not become Python integers, so that they
    stay dynamic under ``torch.export``.
    """

    def __init__(self, *args, conv_cfg: dict | None = None, **kwargs) -> None:
        super().__init__(*args, conv_cfg=conv_cfg or CONV_CFG, **kwargs)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Map the levels of a pyramid to logits of the first one's size."""
        total, *rest = (
            self._run(branch, x)
            for branch, x in zip(
                self.scale_heads, self._transform_inputs(inputs), strict=True
            )
        )
        for x in rest:
            total = total + self._resize(x, total.shape[2:])
        return self.cls_seg(total)

    def _run(self, branch: nn.Sequential, x: Tensor) -> Tensor:
        for module in branch:
            if isinstance(module, Upsample):
                x = self._resize(x, [int(module.scale_factor) * n for n in x.shape[2:]])
            else:
                x = module(x)
        return x

    def _resize(self, x: Tensor, size: Sequence[int]) -> Tensor:
        return F.interpolate(x, size, mode='bilinear', align_corners=self.align_corners)
