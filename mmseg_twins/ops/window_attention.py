"""Attention within windows, for maps whose sides need not be multiples of the window.

A map is neither padded nor masked: windows at the right and bottom border are smaller,
which gives the results of a correct padding mask. Windows of equal size are computed
together: the whole ones, those of the right column, those of the bottom row and the
corner. In eager mode, one kernel gathers their tokens, with indices that are cached for
maps of the same size.

With dynamic sizes under ``torch.export``, the number of these groups would be frozen.
There all windows are whole: those that extend beyond the map are filled with tokens of
its border, which are masked.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .attention import scaled
from .tracing import is_open, is_traced

# Number of orders of tokens that are cached.
CACHE_SIZE = 32


class Windows(NamedTuple):
    """The partition of a map into windows.

    Args:
        size: the side of a whole window, in tokens.
        height: rows of the map.
        width: columns of the map.
        is_filled: whether windows that extend beyond the map are padded; if not, they
            are smaller.
    """

    size: int
    height: int
    width: int
    is_filled: bool


def to_windows(x: Tensor, window_size: int) -> tuple[Tensor, Windows]:
    """Order the tokens of a map by windows.

    Args:
        x: (B, H, W, C).
        window_size: the side of a window, in tokens.

    Returns:
        The tokens, (tokens, C) or (B, tokens, C), and how they were ordered.
    """
    _, h, w, _ = x.shape
    windows = Windows(window_size, h, w, is_filled=is_open(h, w))
    if windows.is_filled:
        return fill(x, windows), windows
    if is_traced() or max(h, w) <= window_size:
        return cut(x, windows), windows
    order, inverse = orders(x.shape[0], windows, x.device)
    return _Reorder.apply(x.flatten(0, 2), order, inverse), windows


def from_windows(tokens: Tensor, windows: Windows) -> Tensor:
    """Put tokens back in the order of the map: the inverse of :func:`to_windows`.

    Args:
        tokens: as :func:`to_windows` returns them.
        windows: of :func:`to_windows`.

    Returns:
        (B, H, W, C).
    """
    size, h, w, is_filled = windows
    if is_filled:
        return unfill(tokens, windows)
    if is_traced() or max(h, w) <= size:
        return uncut(tokens, windows)
    order, inverse = orders(tokens.shape[0] // (h * w), windows, tokens.device)
    return _Reorder.apply(tokens, inverse, order).unflatten(0, (-1, h, w))


class _Reorder(torch.autograd.Function):
    """Permutes the rows of a matrix; so does its gradient, any number of times."""

    @staticmethod
    def forward(ctx, x, order, inverse):
        ctx.save_for_backward(order, inverse)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx, gradient):
        order, inverse = ctx.saved_tensors
        return _Reorder.apply(gradient, inverse, order), None, None


@functools.lru_cache(maxsize=CACHE_SIZE)
def orders(batch: int, windows: Windows, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the place in the maps of each token, and that of each place's token."""
    # Tensors made in inference mode could not take part in training later.
    with torch.inference_mode(False), torch.no_grad():
        _, h, w, _ = windows
        place = torch.arange(batch * h * w, dtype=torch.int32, device=device)
        order = cut(place.view(batch, h, w, 1), windows)
        inverse = uncut(place[:, None], windows)
        return order.flatten(), inverse.flatten()


def cut(x: Tensor, windows: Windows) -> Tensor:
    """Order tokens (B, H, W, C) by windows of their true extents, (tokens, C)."""
    groups = [
        partition(part, rows, columns).flatten(0, 1)
        for strip, rows in split(x, 1, windows.size)
        for part, columns in split(strip, 2, windows.size)
    ]
    return concatenate(groups, dim=0)


def uncut(tokens: Tensor, windows: Windows) -> Tensor:
    """Invert :func:`cut`."""
    size, h, w, _ = windows
    counts = [rows * columns for rows, _, columns, _ in groups_of(windows)]
    batch = tokens.shape[0] // sum(counts)
    parts = iter(tokens.split([batch * count for count in counts]))
    strips = [
        concatenate(
            [
                join(next(parts), window_height, window_width, rows, columns)
                for columns, window_width in tile(w, size)
            ],
            dim=2,
        )
        for rows, window_height in tile(h, size)
    ]
    return concatenate(strips, dim=1)


def ragged(
    qkv: Tensor,
    windows: Windows,
    num_heads: int,
    dropout_rate: float,
    attention: Callable[..., Tensor],
) -> Tensor:
    """Attend within windows of their true extents, group by group.

    The arguments are those of :func:`mmseg_twins.ops.window_attention`, and attention
    itself.
    """
    groups = groups_of(windows)
    batch = qkv.shape[0] // (windows.height * windows.width)
    counts = [batch * rows * columns for rows, _, columns, _ in groups]
    outputs = []
    for group, (_, window_height, _, window_width) in zip(
        qkv.split(counts), groups, strict=True
    ):
        x = group.unflatten(0, (-1, window_height * window_width))
        x = x.unflatten(2, (3, num_heads, -1))  # (N, L, 3, heads, C / heads)
        # Separated first: their gradients are stacked as they are in memory.
        q, k, v = (y.transpose(1, 2) for y in x.unbind(2))  # (N, heads, L, C / heads)
        out = attention(q, k, v, dropout_rate)
        outputs.append(out.transpose(1, 2).flatten(0, 1).flatten(1))
    return concatenate(outputs, dim=0)


def masked(
    qkv: Tensor, windows: Windows, num_heads: int, dropout_rate: float
) -> Tensor:
    """Attend within windows that are filled, to no token that fills them.

    The arguments are those of :func:`mmseg_twins.ops.window_attention`.
    """
    c = qkv.shape[2] // 3
    bias = filling_bias(windows, qkv)
    x = qkv.unflatten(1, (-1, windows.size**2))
    x = x.unflatten(3, (3, num_heads, c // num_heads))
    q, k, v = x.permute(3, 0, 1, 4, 2, 5).unbind(0)  # (B, windows, heads, L, C / heads)
    weights = (scaled(q) @ k.transpose(3, 4) + bias).softmax(-1)
    out = F.dropout(weights, dropout_rate) @ v
    return out.transpose(2, 3).flatten(3).flatten(1, 2)


def places(windows: Windows, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the row and the column of each token of filled windows, (tokens,)."""
    size, h, w, _ = windows
    columns = (w + size - 1) // size
    # One axis: tensors with axes of a single window would be traced another way.
    token = torch.arange((h + size - 1) // size * columns * size**2, device=device)
    window, token = token // size**2, token % size**2
    window_row = window // columns
    window_column = window - window_row * columns  # ONNX has no % of an open size
    return (
        window_row * size + token // size,
        window_column * size + token % size,
    )


def fill(x: Tensor, windows: Windows) -> Tensor:
    """Order tokens (B, H, W, C) by windows that are filled, (B, tokens, C)."""
    _, h, w, _ = windows
    row, column = places(windows, x.device)
    index = row.clamp(max=h - 1) * w + column.clamp(max=w - 1)
    return x.flatten(1, 2).index_select(1, index)


def unfill(tokens: Tensor, windows: Windows) -> Tensor:
    """Invert :func:`fill`, without the tokens that filled the windows."""
    size, h, w, _ = windows
    place = torch.arange(h * w, device=tokens.device)
    row = place // w
    column = place - row * w
    window = row // size * ((w + size - 1) // size) + column // size
    index = window * size**2 + row % size * size + column % size
    return tokens.index_select(1, index).unflatten(1, (h, w))


def filling_bias(windows: Windows, like: Tensor) -> Tensor:
    """Return 0 for tokens of the map and minus infinity for those that fill windows.

    Returns:
        (windows of an image, 1, 1, tokens of a window), to be added to the logits of
        attention.
    """
    row, column = places(windows, like.device)
    outside = (row >= windows.height) | (column >= windows.width)
    bias = torch.zeros_like(outside, dtype=like.dtype)
    bias = bias.masked_fill(outside, float('-inf'))
    return bias.view(-1, 1, 1, windows.size**2)


def partition(x: Tensor, window_height: int, window_width: int) -> Tensor:
    """Cut a map into equal windows that tile it.

    Args:
        x: (B, H, W, C), with H and W multiples of the window's sides.
        window_height: rows of a window.
        window_width: columns of a window.

    Returns:
        (B * windows, window_height * window_width, C), the windows of an image in
        row-major order.
    """
    b, h, w, c = x.shape
    rows, columns = h // window_height, w // window_width
    x = x.reshape(b, rows, window_height, columns, window_width, c)
    return x.transpose(2, 3).reshape(-1, window_height * window_width, c)


def join(
    tokens: Tensor, window_height: int, window_width: int, height: int, width: int
) -> Tensor:
    """Join the tokens of equal windows to a map: the inverse of :func:`partition`.

    Args:
        tokens: (B * windows * window_height * window_width, C).
        window_height: rows of a window.
        window_width: columns of a window.
        height: rows of the map.
        width: columns of the map.

    Returns:
        (B, height, width, C).
    """
    rows, columns = height // window_height, width // window_width
    c = tokens.shape[-1]
    x = tokens.reshape(-1, rows, columns, window_height, window_width, c)
    return x.transpose(2, 3).reshape(-1, height, width, c)


def tile(length: int, window_size: int) -> list[tuple[int, int]]:
    """Split a side into a stretch of whole windows and a ragged rest.

    Returns:
        (stretch, side of a window) pairs, at most two: the largest multiple of
        ``window_size``, then the rest as one window.
    """
    rest = length % window_size
    pairs = ((length - rest, window_size), (rest, rest))
    return [(stretch, side) for stretch, side in pairs if stretch]


def split(x: Tensor, dim: int, window_size: int) -> list[tuple[Tensor, int]]:
    """Split a map as :func:`tile` says, into (part, side of a window) pairs."""
    tiles = tile(x.shape[dim], window_size)
    parts = x.split([stretch for stretch, _ in tiles], dim=dim)
    return [(part, side) for part, (_, side) in zip(parts, tiles, strict=True)]


def groups_of(windows: Windows) -> list[tuple[int, int, int, int]]:
    """Return (rows, window height, columns, window width) of each group of windows."""
    return [
        (*rows, *columns)
        for rows in tile(windows.height, windows.size)
        for columns in tile(windows.width, windows.size)
    ]


def concatenate(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """Concatenate tensors without copying a single one."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tuple(tensors), dim)
