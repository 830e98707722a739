"""UPerNet's decode head (arXiv 1807.10221) without upsampled concatenations.

mmsegmentation's head upsamples every level of the pyramid to 1/4 of the image's
resolution, concatenates and convolves, and does the same with its pooled maps. Here
both convolutions run at each level's own resolution
(:func:`mmseg_twins.ops.pyramid_conv3x3`), with the same arguments, parameters and
names, and results that are equal up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmcv.cnn import ConvModule
from mmseg.models.decode_heads import UPerHead as MMSegUPerHead
from torch import Tensor
from torch.nn import functional as F

from ... import ops
from ...registry import MODELS
from ..conv2d import CONV_CFG, is_plain_conv3x3
from .loss import CrossEntropyMixin


@MODELS.register_module()
class UPerHead(CrossEntropyMixin, MMSegUPerHead):
    """mmsegmentation's ``UPerHead``: same arguments, state dict, logits and loss.

    Checkpoints work with both; ``type='UPerHead'`` selects mmsegmentation's.
    """

    def __init__(self, *args, conv_cfg: dict | None = None, **kwargs) -> None:
        super().__init__(*args, conv_cfg=conv_cfg or CONV_CFG, **kwargs)

    def psp_forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Fuse the last map and its poolings: (B, C, h, w) to (B, channels, h, w)."""
        x = inputs[-1]
        pooled = [
            conv(ops.adaptive_avg_pool(x, pool.output_size))
            for pool, conv in self.psp_modules
        ]
        return self._fuse(self.bottleneck, [x, *pooled])

    def _forward_feature(self, inputs: Sequence[Tensor]) -> Tensor:
        pyramid = self._pyramid(self._transform_inputs(inputs))
        return self._fuse(self.fpn_bottleneck, pyramid)

    def _pyramid(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return the maps to fuse, finest first; the others' memory is free then."""
        # The last map has no lateral convolution but the pooling.
        top = self.psp_forward(inputs)
        outputs = [top]
        for x, lateral_conv, fpn_conv in zip(
            reversed(inputs[:-1]),
            reversed(self.lateral_convs),
            reversed(self.fpn_convs),
            strict=True,
        ):
            lateral = lateral_conv(x)
            top = lateral + self._resize(top, lateral.shape[2:])
            outputs.append(fpn_conv(top))
        return outputs[::-1]

    def _fuse(self, module: ConvModule, maps: Sequence[Tensor]) -> Tensor:
        """Apply a convolution to the concatenation of maps, upsampled to the first.

        Args:
            module: the convolution with its normalization and activation, if any.
            maps: (B, C_i, h_i, w_i) each.

        Returns:
            (B, channels, h_0, w_0).
        """
        if not is_plain(module):
            size = maps[0].shape[2:]
            return module(torch.cat([self._resize(x, size) for x in maps], dim=1))
        conv = module.conv
        out = ops.pyramid_conv3x3(maps, conv.weight, conv.bias, self.align_corners)
        if module.with_norm:
            out = module.norm(out)
        return module.activate(out) if module.with_activation else out

    def _resize(self, x: Tensor, size: Sequence[int]) -> Tensor:
        return F.interpolate(x, size, mode='bilinear', align_corners=self.align_corners)


def is_plain(module: ConvModule) -> bool:
    """Return whether a module is a 3x3 convolution, normalization and activation."""
    return (
        is_plain_conv3x3(module.conv)
        and module.order == ('conv', 'norm', 'act')
        and not module.with_explicit_padding
        and not module.with_spectral_norm
        and module.efficient_conv_bn_eval_forward is None
    )
