r"""Index grids and matrices that a traced graph computes from the shapes it meets.

What a tracer records of ``AdaptiveAvgPool2d``, of a loop over windows or of an
interpolation to a given size holds for the traced size alone: bins, trip counts and
scales are Python numbers by then. Everything here is ``arange`` arithmetic instead, so
that sizes stay symbols in the graph, and bins, windows and weights follow them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def averaging(size: int, bins: int, like: Tensor) -> Tensor:
    """The matrix of ``AdaptiveAvgPool1d`` along one axis.

    Bin i averages the places from floor(i * size / bins) to before
    ceil((i + 1) * size / bins).

    Args:
        size: length of the axis.
        bins: number of averages.
        like: gives type and device.

    Returns:
        (bins, size).
    """
    index = torch.arange(bins, device=like.device)[:, None]
    start = index * size // bins
    end = ((index + 1) * size + bins - 1) // bins
    place = torch.arange(size, device=like.device)
    inside = (place >= start) & (place < end)
    return inside.to(like.dtype) / (end - start).to(like.dtype)


def interpolation(
    size_in: int,
    size_out: int,
    align_corners: bool,
    like: Tensor,
    shifts: Sequence[int] = (0,),
) -> Tensor:
    """The matrix of linear interpolation along one axis, and shifted copies of it.

    An output place lies at ``s`` between the input places, and takes from place j
    what a hat of width 1 around j has there: ``max(0, 1 - |s - j|)``.

    Args:
        size_in: length of the axis.
        size_out: length that it is interpolated to.
        align_corners: as in ``torch.nn.functional.interpolate``.
        like: gives type and device.
        shifts: by how many places the result is moved; zeros come in at the ends.

    Returns:
        (len(shifts), size_out, size_in).
    """
    shift = torch.tensor(shifts, device=like.device)[:, None]
    index = torch.arange(size_out, device=like.device) + shift  # (shifts, size_out)
    # One division of whole numbers: rounding stays within the last bit.
    if align_corners:
        steps = torch.arange(size_out, device=like.device)[-1:].clamp(min=1)
        source = (index * (size_in - 1)).to(like.dtype) / steps.to(like.dtype)
    else:
        source = ((2 * index + 1) * size_in).to(like.dtype) / (2 * size_out) - 0.5
    place = torch.arange(size_in, device=like.device).to(like.dtype)
    source = source.maximum(place[:1]).minimum(place[-1:])
    hat = (1 - (source[..., None] - place).abs()).clamp(min=0)
    inside = (index >= 0) & (index < size_out)
    return hat * inside[..., None].to(like.dtype)


def average_pool(x: Tensor, bins: Sequence[int]) -> Tensor:
    """``adaptive_avg_pool2d(x, bins)``; (B, C, H, W) to (B, C, *bins)."""
    rows = averaging(x.shape[2], bins[0], x)
    columns = averaging(x.shape[3], bins[1], x)
    return rows @ x @ columns.T


class Windows(NamedTuple):
    """How a map of tokens is cut into windows that cover it.

    Args:
        cut: (number of windows * tokens of a window,): for each token of each window
            its place in the map, rows after one another. Where a window at the right
            or bottom juts out of the map, a place at the border instead.
        join: (H * W,): for each place of the map its token among those of ``cut``.
        bias: (number of windows, 1, 1, tokens of a window): 0 for tokens of the map,
            minus infinity for those that jut out, to be added to attention logits.
    """

    cut: Tensor
    join: Tensor
    bias: Tensor


def cover_with_windows(
    height: int, width: int, window_size: int, like: Tensor
) -> Windows:
    """Computes how windows cover a map.

    Args:
        height: rows of the map.
        width: columns of the map.
        window_size: side of a window.
        like: gives type and device of the bias.

    Returns:
        The windows, in row-major order.
    """
    rows = (height + window_size - 1) // window_size
    columns = (width + window_size - 1) // window_size
    steps = torch.arange(window_size, device=like.device)
    y = torch.arange(rows, device=like.device)[:, None, None, None] * window_size
    y = y + steps[:, None]  # (rows, 1, window_size, 1)
    x = torch.arange(columns, device=like.device)[:, None, None] * window_size
    x = x + steps  # (columns, 1, window_size)
    cut = y.clamp(max=height - 1) * width + x.clamp(max=width - 1)
    inside = (y < height) & (x < width)
    bias = torch.zeros_like(inside, dtype=like.dtype).masked_fill(
        ~inside, float('-inf')
    )
    y = torch.arange(height, device=like.device)[:, None]
    x = torch.arange(width, device=like.device)
    window = (y // window_size) * columns + x // window_size
    token = (y % window_size) * window_size + x % window_size
    join = window * window_size**2 + token
    bias = bias.flatten(2).flatten(0, 1)[:, None, None]
    return Windows(cut.flatten(), join.flatten(), bias)
