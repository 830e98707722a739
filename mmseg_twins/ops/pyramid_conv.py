r"""A 3x3 convolution over upsampled maps, computed at the maps' own resolution.

A decode head that fuses a pyramid upsamples every level to the finest one,
concatenates and convolves: for L levels of C channels a product with L * C input
channels at full resolution. Here the same numbers come from products
at each level's own resolution.

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

Three matrix products, in this order: channels at (h, w), columns to W, rows to H. The
last one runs over the rows of all levels at once.

The matrices U and V are constant, so that gradients go through the same products
backwards, and need nothing from the forward pass but x and K. The CPU version does
that image by image and in bands of rows and columns: the matrices are zero away from
their diagonals, and the products of a band skip most of these zeros and fit the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from . import conv3x3
from .differentiation import differentiable_gradients
from .interpolation import shifted_interpolation
from .precision import constant_product, in_autocast_type

# Bytes of the products of a band of rows, and the columns of a band of these.
BAND = 2**24
BAND_COLUMNS = 16


def portable(
    maps: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    align_corners: bool,
    conv: Callable[..., Tensor] = conv3x3.portable,
) -> Tensor:
    """Compute the convolution in plain PyTorch.

    The arguments are those of :func:`mmseg_twins.ops.pyramid_conv3x3`, and the
    convolution of the first map.
    """
    first, *rest = maps
    weight, *weights = in_autocast_type(weight).split([x.shape[1] for x in maps], dim=1)
    out = conv(first, weight, bias)
    if not rest:
        return out
    b, o, height, width = out.shape
    rows, products = [], []  # for each level, and for each level and dy
    for x, part in zip(rest, weights, strict=True):
        c, h, w = x.shape[1:]
        matrix, columns = axes_of(x, (height, width), align_corners, out.dtype)
        rows.append(matrix)
        for taps in part.unbind(2):  # (O, C, dx)
            # As a convolution, the product has the precision that is set for those.
            taps = taps.permute(2, 0, 1).reshape(3 * o, c, 1, 1)
            y = F.conv2d(x, taps).permute(0, 2, 3, 1)  # B, h, w, (dx, O)
            y = y.reshape(b * h, 3 * w, o)
            y = constant_product(columns.expand(b * h, -1, -1), y)  # (B, h), W, O
            products.append(y.reshape(b, h, width * o))
    out = out.permute(0, 2, 3, 1).reshape(b, height, width * o)
    matrices = torch.cat(rows, dim=1).expand(b, -1, -1)
    out = constant_product(matrices, torch.cat(products, dim=1), out)
    return out.view(b, height, width, o).permute(0, 3, 1, 2)


def on_cpu(
    maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, align_corners: bool
) -> Tensor:
    """Compute the convolution image by image, in eager mode on a CPU.

    The arguments are those of :func:`mmseg_twins.ops.pyramid_conv3x3`.
    """
    if torch.is_autocast_enabled('cpu'):
        dtype = torch.get_autocast_dtype('cpu')
        maps = [x.to(dtype) for x in maps]
    with torch.autocast('cpu', enabled=False):
        out = _PyramidConv.apply(weight, align_corners, *maps)
    return out if bias is None else out + bias.to(out.dtype)[:, None, None]


class _PyramidConv(torch.autograd.Function):
    """Computes in the type of the maps; the weight may be of a wider one.

    The weight itself is kept, which is there anyway, and no narrower copy.
    """

    @staticmethod
    def forward(ctx, weight, align_corners, *maps):
        ctx.save_for_backward(weight, *maps)
        ctx.align_corners = align_corners
        weight = weight.to(maps[0].dtype)
        first, *weights = weight.split([x.shape[1] for x in maps], dim=1)
        out = conv3x3.fastest(maps[0], first).permute(0, 2, 3, 1).contiguous()
        _, height, width, o = out.shape
        for x, part in zip(maps[1:], weights, strict=True):
            rows, columns = bands_of(x, (height, width), o, align_corners)
            taps = taps_of(part)
            for image, result in zip(
                x.permute(0, 2, 3, 1), out.flatten(2), strict=True
            ):
                for band in rows:
                    mixed = mix(image[band.inputs], taps, columns, width)
                    result[band.outputs].addmm_(band.matrix, mixed.flatten(1))
        return out.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx, gradient):
        weight, *maps = ctx.saved_tensors
        if torch.is_grad_enabled():
            dweight, *dmaps = differentiable_gradients(
                lambda weight, *maps: portable(
                    maps, weight.to(maps[0].dtype), None, ctx.align_corners
                ),
                (weight, *maps),
                gradient,
            )
            return dweight, None, *dmaps
        needs_weight, _, *needs_map = ctx.needs_input_grad
        wide, weight = weight.dtype, weight.to(gradient.dtype)
        first, *weights = weight.split([x.shape[1] for x in maps], dim=1)
        dx, dweight = conv3x3.fastest_backward(
            gradient, maps[0], first, (needs_map[0], needs_weight)
        )
        dmaps, dweights = [dx], [dweight]
        size = tuple(gradient.shape[2:])
        gradient = gradient.permute(0, 2, 3, 1).contiguous()
        for x, part in zip(maps[1:], weights, strict=True):
            axes = bands_of(x, size, len(part), ctx.align_corners)
            dx, dweight = upsampled_backward(gradient, x, part, axes)
            dmaps.append(dx)
            dweights.append(dweight)
        if not needs_weight:
            return None, None, *dmaps
        return torch.cat([d.to(wide) for d in dweights], dim=1), None, *dmaps


def upsampled_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, axes: tuple[list[Band], list[Band]]
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of a map's part of the result for x and weight.

    Args:
        gradient: of the result, (B, H, W, O).
        x: the map, (B, C, h, w).
        weight: (O, C, 3, 3).
        axes: of :func:`bands_of`.

    Returns:
        Of x's and of weight's shape; the latter in float32 at least.
    """
    (b, c, h, w), o = x.shape, len(weight)
    (rows, columns), taps = axes, taps_of(weight)
    dx = x.new_zeros(b, h, w, c)
    # Sums over images are kept in float32 at least.
    dtaps = taps.new_zeros(
        taps.shape, dtype=torch.promote_types(x.dtype, torch.float32)
    )
    for image, part, result in zip(x.permute(0, 2, 3, 1), gradient, dx, strict=True):
        for band in rows:
            mixed = band.matrix.T @ part[band.outputs].flatten(1)  # (dy, h), (W, O)
            mixed = unmix(mixed.unflatten(1, (-1, o)), columns, w)
            mixed = mixed.view(3, -1, 3 * o)  # dy, (h, w), (dx, O)
            place = result[band.inputs].view(-1, c)
            place.copy_(torch.bmm(mixed, taps.transpose(1, 2)).sum(0))
            pixels = image[band.inputs].reshape(-1, c)
            dtaps += torch.bmm(pixels.T.expand(3, -1, -1), mixed)
    dweight = dtaps.view(3, c, 3, o).permute(3, 1, 0, 2)
    return dx.permute(0, 3, 1, 2), dweight


def taps_of(weight: Tensor) -> Tensor:
    """Return a weight (O, C, 3, 3) as three matrices, (dy, C, (dx, O))."""
    o, c = weight.shape[:2]
    taps = weight.permute(2, 3, 0, 1).reshape(3, 3 * o, c)
    return taps.transpose(1, 2)


def axes_of(
    x: Tensor, size: tuple[int, int], align_corners: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the matrices (H, (dy, h)) and (W, (w, dx)) that upsample and shift x."""
    h, w = x.shape[2:]
    rows = shifted_interpolation(h, size[0], align_corners, dtype, x.device)
    columns = shifted_interpolation(w, size[1], align_corners, dtype, x.device)
    return (
        rows.permute(1, 0, 2).reshape(size[0], 3 * h),
        columns.permute(1, 2, 0).reshape(size[1], 3 * w),
    )


class Band(NamedTuple):
    """Consecutive rows or columns of a map, and the part of the matrix for them.

    Args:
        inputs: the rows or columns of the map.
        outputs: those of the result that depend on them.
        matrix: (outputs, (taps, inputs)) for rows, (outputs, (inputs, taps)) for
            columns.
    """

    inputs: slice
    outputs: slice
    matrix: Tensor


def bands_of(
    x: Tensor, size: tuple[int, int], channels: int, align_corners: bool
) -> tuple[list[Band], list[Band]]:
    """Return the matrices of :func:`axes_of`, for rows and for columns, in bands.

    Args:
        x: the map, (B, C, h, w).
        size: of the result.
        channels: of the result.
        align_corners: as in ``torch.nn.functional.interpolate``.
    """
    (h, w), (height, width) = x.shape[2:], size
    rows = shifted_interpolation(h, height, align_corners, x.dtype, x.device)
    columns = shifted_interpolation(w, width, align_corners, x.dtype, x.device)
    bytes_of_a_row = 3 * (3 * w + width) * channels * x.itemsize
    return (
        bands(rows, max(1, BAND // bytes_of_a_row), (1, 0, 2)),
        bands(columns, BAND_COLUMNS, (1, 2, 0)),
    )


def bands(matrices: Tensor, size: int, order: tuple[int, int, int]) -> list[Band]:
    """Cut matrices into bands of inputs.

    Args:
        matrices: (taps, outputs, inputs).
        size: inputs of a band.
        order: of these dimensions in a band's matrix, whose last two are joined.
    """
    result = []
    for start in range(0, matrices.shape[2], size):
        inputs = slice(start, start + size)
        part = matrices[:, :, inputs]
        reached = part.any(2).any(0).nonzero()
        if not len(reached):  # possible if the map is larger than the result
            continue
        outputs = slice(int(reached[0]), int(reached[-1]) + 1)
        matrix = part[:, outputs].permute(order).flatten(1)
        result.append(Band(inputs, outputs, matrix))
    return result


def mix(image: Tensor, taps: Tensor, columns: Sequence[Band], width: int) -> Tensor:
    """Apply the taps to an image and upsample its columns.

    Args:
        image: (h, w, C).
        taps: of :func:`taps_of`.
        columns: of :func:`bands_of`.
        width: of the result.

    Returns:
        ((dy, h), W, O).
    """
    h, w, c = image.shape
    x = torch.bmm(image.reshape(1, h * w, c).expand(3, -1, -1), taps)
    x = x.view(3 * h, w, 3, -1)  # (dy, h), w, dx, O
    out = x.new_zeros(3 * h, width, x.shape[3])
    for band in columns:
        matrix = band.matrix.expand(3 * h, -1, -1)
        out[:, band.outputs].baddbmm_(matrix, x[:, band.inputs].flatten(1, 2))
    return out


def unmix(gradient: Tensor, columns: Sequence[Band], width: int) -> Tensor:
    """Compute the gradient of :func:`mix` for what the taps made of the image.

    Args:
        gradient: of its result.
        columns: as there.
        width: of the image.

    Returns:
        ((dy, h), w, (dx, O)).
    """
    count, _, o = gradient.shape
    out = gradient.new_zeros(count, 3 * width, o)
    for band in columns:
        place = slice(3 * band.inputs.start, 3 * band.inputs.stop)
        matrix = band.matrix.T.expand(count, -1, -1)
        out[:, place] = torch.bmm(matrix, gradient[:, band.outputs])
    return out.view(count, width, 3 * o)
