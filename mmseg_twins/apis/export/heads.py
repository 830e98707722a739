"""The forward passes of neck and decode heads with the maps' sizes left open.

The functions take mmsegmentation's ``FPN``, ``UPerHead`` and ``FPNHead`` (or the heads
of the same names here, which are subclasses), use their parameters and return what
they do in evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmcv.cnn import ConvModule
from mmseg.models.decode_heads import FPNHead, UPerHead
from mmseg.models.necks import FPN
from mmseg.models.utils import Upsample
from torch import Tensor, nn
from torch.nn import functional as F

from .grids import average_pool, interpolation


def run_neck(neck: FPN, maps: Sequence[Tensor]) -> list[Tensor]:
    """The feature pyramid of FPN, as many levels as come in."""
    maps = maps[neck.start_level : neck.backbone_end_level]
    laterals = [conv(x) for conv, x in zip(neck.lateral_convs, maps, strict=True)]
    top, merged = laterals[-1], [laterals[-1]]
    for lateral in reversed(laterals[:-1]):
        size = lateral.shape[2:]
        top = lateral + F.interpolate(top, size, **neck.upsample_cfg)
        merged.append(top)
    return [conv(x) for conv, x in zip(neck.fpn_convs, reversed(merged), strict=True)]


def run_fpn_head(head: FPNHead, maps: Sequence[Tensor]) -> Tensor:
    """Semantic FPN's logits, at the first map's size."""
    maps = [maps[index] for index in head.in_index]
    total = None
    for branch, x in zip(head.scale_heads, maps, strict=True):
        for module in branch:
            if isinstance(module, Upsample):
                size = [int(module.scale_factor) * side for side in x.shape[2:]]
                x = resize(x, size, module.align_corners)
            else:
                x = module(x)
        if total is None:
            total = x
        else:
            total = total + resize(x, total.shape[2:], head.align_corners)
    return head.conv_seg(total)


def run_uper_head(head: UPerHead, maps: Sequence[Tensor]) -> Tensor:
    """UPerNet's logits, at the first map's size."""
    maps = [maps[index] for index in head.in_index]
    pooled = [
        conv(average_pool(maps[-1], as_pair(pool.output_size)))
        for pool, conv in head.psp_modules
    ]
    top = concatenate([maps[-1], *pooled], head.align_corners)
    top = head.bottleneck(top)
    outputs = [top]
    for x, lateral_conv, fpn_conv in zip(
        reversed(maps[:-1]),
        reversed(head.lateral_convs),
        reversed(head.fpn_convs),
        strict=True,
    ):
        lateral = lateral_conv(x)
        top = lateral + resize(top, lateral.shape[2:], head.align_corners)
        outputs.append(fpn_conv(top))
    return head.conv_seg(fuse(head.fpn_bottleneck, outputs[::-1], head.align_corners))


def resize(x: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Bilinear interpolation; (B, C, h, w) to (B, C, *size)."""
    return F.interpolate(x, size, mode='bilinear', align_corners=align_corners)


def as_pair(value: int | Sequence[int]) -> tuple[int, int]:
    """A pooled size as (rows, columns)."""
    return (value, value) if isinstance(value, int) else tuple(value)


def concatenate(maps: Sequence[Tensor], align_corners: bool) -> Tensor:
    """Maps, upsampled to the first, as one."""
    size = maps[0].shape[2:]
    rest = [resize(x, size, align_corners) for x in maps[1:]]
    return torch.cat([maps[0], *rest], dim=1)


def fuse(module: ConvModule, maps: Sequence[Tensor], align_corners: bool) -> Tensor:
    """Applies a 3x3 convolution to maps, upsampled to the first and concatenated.

    Each map is convolved at its own resolution, which is the same sum in another order
    (:mod:`mmseg_twins.ops.pyramid_conv` derives it).

    Args:
        module: the convolution, with normalization and activation.
        maps: (B, C_i, h_i, w_i) each.
        align_corners: as in ``torch.nn.functional.interpolate``.

    Returns:
        (B, channels, h_0, w_0).
    """
    if len(maps) == 1 or not is_plain_conv3x3(module):
        return module(concatenate(maps, align_corners))
    size = maps[0].shape[2:]
    weights = module.conv.weight.split([x.shape[1] for x in maps], dim=1)
    out = F.conv2d(maps[0], weights[0], module.conv.bias, padding=1)
    rest = sum(
        convolve_upsampled(x, weight, size, align_corners)
        for x, weight in zip(maps[1:], weights[1:], strict=True)
    )
    out = out + rest.permute(0, 3, 1, 2)
    if module.with_norm:
        out = module.norm(out)
    return module.activate(out) if module.with_activation else out


def is_plain_conv3x3(module: ConvModule) -> bool:
    """Whether a module is a 3x3 convolution that nothing but its weights defines."""
    conv = module.conv
    return (
        type(conv) is nn.Conv2d
        and conv.kernel_size == (3, 3)
        and conv.stride == conv.padding == conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == 'zeros'
        and module.order == ('conv', 'norm', 'act')
        and not module.with_explicit_padding
        and not module.with_spectral_norm
    )


def convolve_upsampled(
    x: Tensor, weight: Tensor, size: Sequence[int], align_corners: bool
) -> Tensor:
    """``conv2d(interpolate(x, size, mode='bilinear'), weight, padding=1)``.

    Args:
        x: the map, (B, C, h, w).
        weight: the convolution's, (O, C, 3, 3).
        size: (H, W), to which the map is upsampled.
        align_corners: as in ``torch.nn.functional.interpolate``.

    Returns:
        (B, H, W, O).
    """
    (b, c, h, w), o = x.shape, weight.shape[0]
    taps = weight.permute(1, 2, 3, 0).reshape(c, 9 * o)  # C, (dy, dx, O)
    x = x.permute(0, 2, 3, 1).reshape(b, h * w, c) @ taps
    # Columns: sum over (w, dx) for each (B, h, dy).
    x = x.reshape(b, h, w, 3, 3, o).permute(0, 1, 3, 2, 4, 5)
    x = x.reshape(b, 3 * h, 3 * w, o)
    columns = interpolation(w, size[1], align_corners, x, (-1, 0, 1))
    x = columns.permute(1, 2, 0).reshape(size[1], 3 * w) @ x
    # Rows: sum over (h, dy).
    rows = interpolation(h, size[0], align_corners, x, (-1, 0, 1))
    rows = rows.permute(1, 2, 0).reshape(size[0], 3 * h)
    x = rows @ x.reshape(b, 3 * h, size[1] * o)
    return x.reshape(b, size[0], size[1], o)
