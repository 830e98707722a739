"""A convolution layer for the ``conv_cfg`` of heads and necks."""

from __future__ import annotations

from torch import Tensor, nn

from .. import ops
from ..registry import MODELS

# The heads' default conv_cfg.
CONV_CFG = dict(type='mmseg_twins.Conv2d')


@MODELS.register_module()
class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` that uses :func:`mmseg_twins.ops.conv3x3` if it is a plain 3x3 one.

    Same arguments, parameters and results, up to rounding.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, O, H, W)."""
        if is_plain_conv3x3(self):
            return ops.conv3x3(x, self.weight, self.bias)
        return super().forward(x)


def is_plain_conv3x3(conv: nn.Module) -> bool:
    """Return whether a layer is a 3x3 convolution defined by its weights alone."""
    return bool(
        type(conv) in (nn.Conv2d, Conv2d)
        and conv.kernel_size == (3, 3)
        and conv.stride == conv.padding == conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == 'zeros'
    )
