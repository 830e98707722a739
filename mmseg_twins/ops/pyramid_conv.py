r"""A 3x3 convolution over upsampled maps, computed at the maps' own resolution.

A decode head that fuses a pyramid upsamples every level to the finest one,
concatenates and convolves: for L levels of C channels a product with L * C input
channels at full resolution. The functions here return the same numbers from
products at each level's own resolution.

Derivation. Let ``up`` be bilinear upsampling from (h, w) to (H, W): separable and
the same for every channel, so ``up(x) = U x V'`` for each channel, with interpolation
matrices U (H, h) and V (W, w). Let ``shift[dy, dx]`` move a map by a tap of the
kernel, filling zeros at the border. A convolution with weight K is a sum over its
taps::

    conv(up(x)) = sum over (dy, dx) of shift[dy, dx](K[dy, dx] up(x))

K[dy, dx] mixes channels at one place; ``up`` mixes places in one channel. The two
commute::

    conv(up(x)) = sum over (dy, dx) of shift[dy, dx](up(K[dy, dx] x))

Shifting is a matrix for each axis too (an identity moved by one row, with a zero row
at the border), so that with ``U[dy] = shift[dy] U`` and ``V[dx] = shift[dx] V``::

    conv(up(x)) = sum over dy of U[dy] (sum over dx of (K[dy, dx] x) V[dx]')

Three matrix products, in this order: channels at (h, w), columns to W, rows to H.
The matrices U and V are constant, so that gradients go through the same products
backwards, and need nothing from the forward pass but x and K.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.amp import is_autocast_available
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .conv3x3 import convolve, convolve_backward


@functools.lru_cache(maxsize=128)
def interpolation(
    size_in: int,
    size_out: int,
    align_corners: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """The matrix of linear interpolation along one axis.

    Args:
        size_in: length of the axis.
        size_out: length that it is interpolated to.
        align_corners: as in ``torch.nn.functional.interpolate``.
        dtype: type of the result, which is computed in float64.
        device: where the result is.

    Returns:
        (size_out, size_in). The last 128 different ones are kept.
    """
    # A tensor made in inference mode could not take part in training later.
    with torch.inference_mode(False), torch.no_grad():
        identity = torch.eye(size_in, dtype=torch.float64)
        matrix = F.interpolate(
            identity[None], size_out, mode='linear', align_corners=align_corners
        )
        return matrix[0].T.to(device, dtype)


@functools.lru_cache(maxsize=128)
def shifted_interpolation(
    size_in: int,
    size_out: int,
    align_corners: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """The matrices U[-1], U[0], U[1] of one axis: interpolation, then a shift.

    Args:
        size_in: as in :func:`interpolation`, like the others.
        size_out: see there.
        align_corners: see there.
        dtype: see there.
        device: see there.

    Returns:
        (3, size_out, size_in): for each tap of the kernel, what each output place
        takes from each input place. The last 128 different ones are kept.
    """
    with torch.inference_mode(False), torch.no_grad():
        make = interpolation.__wrapped__ if is_traced() else interpolation
        matrix = make(size_in, size_out, align_corners, dtype, device)
        padded = F.pad(matrix, (0, 0, 1, 1))
        return torch.stack([padded[tap : tap + size_out] for tap in range(3)])


def conv3x3_of_pyramid(
    maps: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    align_corners: bool,
) -> Tensor:
    """A 3x3 convolution over maps that are upsampled to the first and concatenated.

    Args:
        maps: (B, C_i, h_i, w_i) each; the first gives the size of the result.
        weight: the convolution's, (O, sum of C_i, 3, 3).
        bias: (O,), or None.
        align_corners: as in ``torch.nn.functional.interpolate``.

    Returns:
        (B, O, h_0, w_0).
    """
    device_type = weight.device.type
    # A compiler derives the gradients itself; devices such as `meta` know no autocast.
    if torch.compiler.is_compiling() or not is_autocast_available(device_type):
        out = plain_conv3x3_of_pyramid(maps, weight, align_corners)
    else:
        if torch.is_autocast_enabled(device_type):
            dtype = torch.get_autocast_dtype(device_type)
            maps = [x.to(dtype) for x in maps]
        with torch.autocast(device_type, enabled=False):
            out = _PyramidConv.apply(weight, align_corners, *maps)
    return out if bias is None else out + bias.to(out.dtype)[:, None, None]


def plain_conv3x3_of_pyramid(
    maps: Sequence[Tensor], weight: Tensor, align_corners: bool
) -> Tensor:
    """What :func:`conv3x3_of_pyramid` computes, as one expression."""
    size = tuple(maps[0].shape[2:])
    weights = weight.split([x.shape[1] for x in maps], dim=1)
    out = F.conv2d(maps[0], weights[0], padding=1)
    for x, part in zip(maps[1:], weights[1:], strict=True):
        out = out + conv3x3_of_upsampled(x, part, size, align_corners)
    return out


def conv3x3_of_upsampled(
    x: Tensor, weight: Tensor, size: tuple[int, int], align_corners: bool
) -> Tensor:
    """``conv2d(interpolate(x, size, mode='bilinear'), weight, padding=1)``.

    Args:
        x: the map, (B, C, h, w).
        weight: the convolution's, (O, C, 3, 3).
        size: (H, W), to which the map is upsampled.
        align_corners: as in ``torch.nn.functional.interpolate``.

    Returns:
        (B, O, H, W), in channels_last memory.
    """
    taps, (rows, columns) = taps_of(weight), axes_of(x, size, align_corners)
    images = [rows @ mix(image, taps, columns) for image in x.permute(0, 2, 3, 1)]
    return torch.stack(images).view(len(x), *size, -1).permute(0, 3, 1, 2)


class _PyramidConv(torch.autograd.Function):
    """Computes in the type of the maps; the weight may be of a wider one.

    What is kept is the weight itself, which is there anyway, and no narrower copy.
    """

    @staticmethod
    def forward(ctx, weight, align_corners, *maps):
        ctx.save_for_backward(weight, *maps)
        ctx.align_corners = align_corners
        weight = weight.to(maps[0].dtype)
        first, *weights = weight.split([x.shape[1] for x in maps], dim=1)
        out = convolve(maps[0], first).permute(0, 2, 3, 1).contiguous()
        b, height, width, o = out.shape
        for x, part in zip(maps[1:], weights, strict=True):
            rows, columns = axes_of(x, (height, width), align_corners)
            taps = taps_of(part)
            for image, result in zip(x.permute(0, 2, 3, 1), out, strict=True):
                result.view(height, width * o).addmm_(rows, mix(image, taps, columns))
        return out.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        weight, *maps = ctx.saved_tensors
        needs_weight, _, *needs_map = ctx.needs_input_grad
        wide, weight = weight.dtype, weight.to(gradient.dtype)
        first, *weights = weight.split([x.shape[1] for x in maps], dim=1)
        dx, dweight = convolve_backward(
            gradient, maps[0], first, (needs_map[0], needs_weight)
        )
        dmaps, dweights = [dx], [dweight]
        size = tuple(gradient.shape[2:])
        gradient = gradient.permute(0, 2, 3, 1).contiguous().flatten(2)
        for x, part in zip(maps[1:], weights, strict=True):
            axes = axes_of(x, size, ctx.align_corners)
            dx, dweight = upsampled_backward(gradient, x, part, axes)
            dmaps.append(dx)
            dweights.append(dweight)
        if not needs_weight:
            return None, None, *dmaps
        return torch.cat([d.to(wide) for d in dweights], dim=1), None, *dmaps


def upsampled_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, axes: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`conv3x3_of_upsampled` with respect to x and weight.

    Args:
        gradient: of the result, (B, H, W * O).
        x: the map, (B, C, h, w).
        weight: (O, C, 3, 3).
        axes: of :func:`axes_of`.

    Returns:
        Of x's and of weight's shape; the latter in float32 at least.
    """
    (b, c, h, w), o = x.shape, len(weight)
    (rows, columns), taps = axes, taps_of(weight)
    columns = columns.T.expand(3 * h, -1, -1)
    dx = x.new_empty(b, h, w, c)
    # Sums over images are kept in float32 at least.
    dtaps = taps.new_zeros(
        taps.shape, dtype=torch.promote_types(x.dtype, torch.float32)
    )
    for image, part, result in zip(x.permute(0, 2, 3, 1), gradient, dx, strict=True):
        part = (rows.T @ part).view(3 * h, -1, o)  # (dy, h), W, O
        part = torch.bmm(columns, part).view(3, h * w, 3 * o)  # dy, (h, w), (dx, O)
        result.copy_(torch.bmm(part, taps.transpose(1, 2)).sum(0).view(h, w, c))
        dtaps += torch.bmm(image.reshape(h * w, c).T.expand(3, -1, -1), part)
    dweight = dtaps.view(3, c, 3, o).permute(3, 1, 0, 2)
    return dx.permute(0, 3, 1, 2), dweight


def taps_of(weight: Tensor) -> Tensor:
    """A convolution's weight (O, C, 3, 3) as three matrices, (dy, C, (dx, O))."""
    o, c = weight.shape[:2]
    taps = weight.permute(2, 3, 0, 1).reshape(3, 3 * o, c)
    return taps.transpose(1, 2)


def axes_of(
    x: Tensor, size: tuple[int, int], align_corners: bool
) -> tuple[Tensor, Tensor]:
    """The matrices (H, (dy, h)) and (W, (w, dx)) that upsample x and shift it."""
    make = shifted_interpolation.__wrapped__ if is_traced() else shifted_interpolation
    h, w = x.shape[2:]
    rows = make(h, size[0], align_corners, x.dtype, x.device)
    columns = make(w, size[1], align_corners, x.dtype, x.device)
    return (
        rows.permute(1, 0, 2).reshape(size[0], 3 * h),
        columns.permute(1, 2, 0).reshape(size[1], 3 * w),
    )


def is_traced() -> bool:
    """Whether tensors that are made now are no numbers to keep.

    A compiler traces through the making of a matrix, and not through a cache; a mode
    such as PyTorch's for fake tensors makes matrices that only pretend to be some.
    """
    return torch.compiler.is_compiling() or type(torch.empty(0)) is not Tensor


def mix(image: Tensor, taps: Tensor, columns: Tensor) -> Tensor:
    """Applies the taps to an image and upsamples its columns.

    Args:
        image: (h, w, C).
        taps: of :func:`taps_of`.
        columns: of :func:`axes_of`.

    Returns:
        ((dy, h), (W, O)).
    """
    h, w, c = image.shape
    x = torch.bmm(image.reshape(1, h * w, c).expand(3, -1, -1), taps)
    x = x.view(3 * h, 3 * w, -1)  # (dy, h), (w, dx), O
    return torch.bmm(columns.expand(3 * h, -1, -1), x).flatten(1)
