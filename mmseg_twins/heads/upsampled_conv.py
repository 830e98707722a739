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
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


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
        make = (
            interpolation.__wrapped__
            if torch.compiler.is_compiling()
            else interpolation
        )
        matrix = make(size_in, size_out, align_corners, dtype, device)
        padded = F.pad(matrix, (0, 0, 1, 1))
        return torch.stack([padded[tap : tap + size_out] for tap in range(3)])


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
    (b, c, h, w), o = x.shape, weight.shape[0]
    # A compiler traces through the making of the matrices, and not through a cache.
    compiling = torch.compiler.is_compiling()
    matrix = shifted_interpolation.__wrapped__ if compiling else shifted_interpolation
    rows = matrix(h, size[0], align_corners, x.dtype, x.device)
    columns = matrix(w, size[1], align_corners, x.dtype, x.device)
    x = x.permute(0, 2, 3, 1).reshape(b, 1, h * w, c)
    taps = weight.permute(2, 1, 3, 0).reshape(3, c, 3 * o)  # dy, C, (dx, O)
    x = (x @ taps).view(b * 3 * h, w * 3, o)  # (B, dy, h), (w, dx), O
    columns = columns.permute(1, 2, 0).reshape(1, size[1], w * 3)
    x = torch.bmm(columns.expand(len(x), -1, -1), x)  # (B, dy, h), W, O
    rows = rows.permute(1, 0, 2).reshape(1, size[0], 3 * h)
    x = torch.bmm(rows.expand(b, -1, -1), x.view(b, 3 * h, size[1] * o))
    return x.view(b, *size, o).permute(0, 3, 1, 2)


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
    size = tuple(maps[0].shape[2:])
    weights = weight.split([x.shape[1] for x in maps], dim=1)
    out = F.conv2d(maps[0], weights[0], bias, padding=1)
    for x, part in zip(maps[1:], weights[1:], strict=True):
        out = out + conv3x3_of_upsampled(x, part, size, align_corners)
    return out
