"""UPerNet's decode head (arXiv 1807.10221) without upsampled concatenations.

mmsegmentation's head upsamples every level of the pyramid to 1/4 resolution,
concatenates and convolves, and does the same with its pooled maps. Here both
convolutions run at each level's own resolution (:mod:`.upsampled_conv`), with the
same arguments, parameters and names, and results that are equal up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmcv.cnn import ConvModule
from mmseg.models.decode_heads import UPerHead as MMSegUPerHead
from mmseg.models.utils import resize
from torch import Tensor

from ...ops.conv3x3 import CONV_CFG, is_plain_conv3x3
from ...ops.pyramid_conv import conv3x3_of_pyramid
from ...registry import MODELS
from .loss import StripwiseLossMixin


@MODELS.register_module()
class UPerHead(StripwiseLossMixin, MMSegUPerHead):
    """mmsegmentation's ``UPerHead``: same arguments, same state dict, less work.

    Checkpoints move freely between both; ``type='UPerHead'`` goes back to the
    built-in one.
    """

    def __init__(self, *args, conv_cfg: dict | None = None, **kwargs) -> None:
        super().__init__(*args, conv_cfg=conv_cfg or CONV_CFG, **kwargs)

    def psp_forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Fuses the last map with its poolings; (B, C, h, w) to (B, channels, h, w)."""
        x = inputs[-1]
        pooled = [branch(x) for branch in self.psp_modules]
        return fuse(self.bottleneck, [x, *pooled], self.align_corners)

    def _forward_feature(self, inputs: Sequence[Tensor]) -> Tensor:
        inputs = self._transform_inputs(inputs)
        top = self.psp_forward(inputs)
        # The last map has no lateral convolution: it came through the pooling.
        laterals = [
            conv(x) for conv, x in zip(self.lateral_convs, inputs[:-1], strict=True)
        ]
        outputs = [top]
        for lateral, conv in zip(
            reversed(laterals), reversed(self.fpn_convs), strict=True
        ):
            top = lateral + resize(
                top,
                size=lateral.shape[2:],
                mode='bilinear',
                align_corners=self.align_corners,
            )
            outputs.append(conv(top))
        return fuse(self.fpn_bottleneck, outputs[::-1], self.align_corners)


def fuse(module: ConvModule, maps: Sequence[Tensor], align_corners: bool) -> Tensor:
    """Applies ``module`` to ``maps``, upsampled to the first and concatenated.

    Args:
        module: a 3x3 convolution, with normalization and activation where it has
            them. One that is not plain is applied to the concatenation itself.
        maps: (B, C_i, h_i, w_i) each.
        align_corners: as in ``torch.nn.functional.interpolate``.

    Returns:
        (B, channels, h_0, w_0).
    """
    if not is_plain(module):
        size = maps[0].shape[2:]
        maps = [
            resize(x, size=size, mode='bilinear', align_corners=align_corners)
            for x in maps
        ]
        return module(torch.cat(maps, dim=1))
    conv = module.conv
    out = conv3x3_of_pyramid(maps, conv.weight, conv.bias, align_corners)
    if module.with_norm:
        out = module.norm(out)
    return module.activate(out) if module.with_activation else out


def is_plain(module: ConvModule) -> bool:
    """Whether a module is a 3x3 convolution, normalization and activation."""
    return (
        is_plain_conv3x3(module.conv)
        and module.order == ('conv', 'norm', 'act')
        and not module.with_explicit_padding
        and not module.with_spectral_norm
        and module.efficient_conv_bn_eval_forward is None
    )
