r"""Labels of upsampled logits, without holding these at full resolution.

A decode head's logits, at 1/4 of the image's resolution, are upsampled, averaged where
sliding windows overlap, cut to the image without its padding, mirrored, and resized to
the original image, before the largest of a pixel's logits becomes its label. For 150
classes and 2048x4096 px, each of these steps makes 5 GB of numbers, of which the labels
keep nothing. Here the labels are made tile by tile, and nothing but a tile is ever at
full resolution.

Derivation. Each step is a linear map of the rows and another one of the columns: a
bilinear interpolation, an average (the windows form a grid, so that the number of them
that cover a pixel is a product), a cut, a mirroring. So are all of them together: with
the logits X of all windows, put side by side, the image's are ``R X C'``. The matrices
R and C have a few entries in each row, and a tile of the image needs those rows and
columns of X alone that its rows of R and of C touch.

On a GPU, these products have the precision of matrix products, which is that of float32
unless a user allows TF32 for them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .interpolation import source_places

# Bytes of a tile's logits: within the cache of a CPU's core; few kernels elsewhere.
CPU_BUDGET = 1 << 20
ACCELERATOR_BUDGET = 256 << 20
# Lists of blocks that are kept for later images of the same size.
CACHE_SIZE = 64


class Axis(NamedTuple):
    """How the rows of an image, or its columns, come from those of the logits.

    Args:
        starts: where windows begin, ascending; an image that is predicted as a whole
            is a single window, which begins at 0.
        window: the windows' size, in pixels.
        logits: the size of a window's logits. Those of all windows lie one after the
            other.
        crop: first pixel of the image, and the one after the last; the rest is padding.
        flip: whether the image is mirrored.
        size: the size that the image is resized to, in pixels.
        align_corners: as in ``torch.nn.functional.interpolate``.
    """

    starts: tuple[int, ...]
    window: int
    logits: int
    crop: tuple[int, int]
    flip: bool
    size: int
    align_corners: bool


class View(NamedTuple):
    """The logits of an image, at the resolution of the decode head.

    Args:
        logits: (h, w, classes): those of all windows, put side by side. Where windows
            arrive one row after the other, h may be less, and row i is at i modulo h.
        rows: of the image.
        columns: of the image.
    """

    logits: Tensor
    rows: Axis
    columns: Axis


class Taps(NamedTuple):
    """A matrix with few entries in each row: their columns and values, (n, k) each."""

    column: Tensor
    weight: Tensor


class Block(NamedTuple):
    """Some neighboring rows of a matrix: which, what they touch, and how they mix it.

    Args:
        outputs: the rows.
        inputs: the columns with entries, ascending.
        last: the last of them.
        matrix: (outputs, inputs).
    """

    outputs: slice
    inputs: Tensor
    last: int
    matrix: Tensor


class Labels:
    """Labels of an image, made as soon as the logits that they need are there.

    Args:
        view: the image, whose logits are filled in row by row.
        threshold: the least probability of the foreground, if there is one class.

    Attributes:
        labels: (H, W), int64.
    """

    def __init__(self, view: View, threshold: float | None) -> None:
        self.labels = empty_labels(view)
        self._view, self._threshold = view, threshold
        strips = blocks(view.rows, *tiling(view.logits))
        self._waiting = sorted(strips, key=lambda strip: strip.last, reverse=True)

    def update(self, rows: int) -> None:
        """Make the labels that need none but the first rows of all logits."""
        while self._waiting and self._waiting[-1].last < rows:
            strip = self._waiting.pop()
            fill_strip(self.labels, [self._view], [strip], self._threshold)


def merged_labels(views: Sequence[View], threshold: float | None) -> Tensor:
    """Return the labels of an image by the mean of its views' probabilities.

    Args:
        views: of the image, with all of their logits; rows and columns of the same
            final size.
        threshold: the least probability of the foreground, if there is one class.

    Returns:
        (H, W), int64.
    """
    labels = empty_labels(views[0])
    strips = (blocks(view.rows, *tiling(view.logits)) for view in views)
    for rows in zip(*strips, strict=True):
        fill_strip(labels, views, rows, threshold)
    return labels


def rows_to_hold(rows: Axis, like: Tensor) -> int:
    """Return how many windows' rows of logits have to be there at a time.

    Args:
        rows: of the image.
        like: logits, (..., classes).
    """
    return max(
        strip.last // rows.logits - int(strip.inputs[0]) // rows.logits + 1
        for strip in blocks(rows, *tiling(like))
    )


def empty_labels(view: View) -> Tensor:
    """Return an image's labels before they are made, (H, W), int64."""
    size = (view.rows.size, view.columns.size)
    return view.logits.new_empty(size, dtype=torch.int64)


@torch.no_grad()
def fill_strip(
    labels: Tensor,
    views: Sequence[View],
    rows: Sequence[Block],
    threshold: float | None,
) -> None:
    """Make the labels of some rows, tile by tile.

    Args:
        labels: of the image, (H, W).
        views: of the image.
        rows: the rows, for each of the views.
        threshold: the least probability of the foreground, if there is one class.
    """
    all_columns = [blocks(view.columns, *tiling(view.logits)) for view in views]
    with torch.autocast(labels.device.type, enabled=False):
        for columns in zip(*all_columns, strict=True):
            tiles = list(map(upsampled_tile, views, rows, columns))
            place = rows[0].outputs, columns[0].outputs
            labels[place] = tile_labels(tiles, threshold)


def upsampled_tile(view: View, rows: Block, columns: Block) -> Tensor:
    """Return an image's logits in some rows and columns, (rows, columns, classes)."""
    places = (rows.inputs % len(view.logits))[:, None], columns.inputs
    part = view.logits[places].to(rows.matrix.dtype)
    wide = torch.matmul(columns.matrix, part)  # (rows of logits, columns, classes)
    tile = rows.matrix @ wide.flatten(1)
    return tile.unflatten(1, wide.shape[1:])


def tile_labels(tiles: Sequence[Tensor], threshold: float | None) -> Tensor:
    """Return the labels of a tile by the mean of its views' probabilities.

    Args:
        tiles: the logits of each view, (rows, columns, classes).
        threshold: the least probability of the foreground, if there is one class.

    Returns:
        (rows, columns), int64 or bool.
    """
    is_binary = tiles[0].shape[-1] == 1
    if len(tiles) == 1 and not is_binary:  # the largest logit is the most probable
        return tiles[0].argmax(-1)
    total = torch.zeros_like(tiles[0])
    for tile in tiles:
        total += tile.sigmoid() if is_binary else tile.softmax(-1)
    if is_binary:
        return total[..., 0] / len(tiles) > threshold
    return total.argmax(-1)


def tiling(logits: Tensor) -> tuple[int, torch.dtype, torch.device]:
    """Return the side of tiles, in pixels, and the type and place of their logits."""
    is_cpu = logits.device.type == 'cpu'
    dtype = torch.promote_types(logits.dtype, torch.float32)
    numbers = (CPU_BUDGET if is_cpu else ACCELERATOR_BUDGET) // dtype.itemsize
    return max(math.isqrt(numbers // logits.shape[-1]), 1), dtype, logits.device


@functools.lru_cache(maxsize=CACHE_SIZE)
def blocks(
    axis: Axis, side: int, dtype: torch.dtype, device: torch.device
) -> list[Block]:
    """Return the blocks of an axis's matrix.

    Args:
        axis: rows or columns of an image.
        side: rows of a block.
        dtype: of the blocks' matrices, which are computed in float64.
        device: where these and ``inputs`` are.
    """
    column, weight = taps(axis)
    result = []
    for start in range(0, axis.size, side):
        outputs = slice(start, min(start + side, axis.size))
        entry = weight[outputs] != 0
        inputs, place = column[outputs][entry].unique(return_inverse=True)
        row = entry.nonzero()[:, 0]
        matrix = torch.zeros(len(entry), len(inputs), dtype=torch.float64)
        matrix.index_put_((row, place), weight[outputs][entry], accumulate=True)
        last = int(inputs[-1])
        result.append(
            Block(outputs, inputs.to(device), last, matrix.to(dtype).to(device))
        )
    return result


def taps(axis: Axis) -> Taps:
    """Return the matrix from the logits of all windows to the rows or columns."""
    start, stop = axis.crop
    pixels = Taps(*(values[start:stop] for values in averaged_windows(axis)))
    if axis.flip:
        pixels = Taps(*(values.flip(0) for values in pixels))
    resized = interpolated(stop - start, axis.size, axis.align_corners)
    weight = pixels.weight[resized.column] * resized.weight[..., None]
    return Taps(pixels.column[resized.column].flatten(1), weight.flatten(1))


def averaged_windows(axis: Axis) -> Taps:
    """Return the matrix from the logits of all windows to the pixels before a cut."""
    window = interpolated(axis.logits, axis.window, axis.align_corners)
    # Of windows that cover a pixel, numbers are consecutive: at most so many.
    covers = max(
        sum(last - axis.window < start <= last for start in axis.starts)
        for last in axis.starts
    )
    shape = (axis.starts[-1] + axis.window, covers, 2)
    column = torch.zeros(shape, dtype=torch.int64)
    weight = torch.zeros(shape, dtype=torch.float64)
    for number, start in enumerate(axis.starts):
        place = slice(start, start + axis.window), number % covers
        column[place] = window.column + number * axis.logits
        weight[place] = window.weight
    weight /= weight.sum((1, 2), keepdim=True)
    return Taps(column.flatten(1), weight.flatten(1))


def interpolated(size_in: int, size_out: int, align_corners: bool) -> Taps:
    """Return the matrix of ``torch.nn.functional.interpolate`` along an axis."""
    places = torch.arange(size_out)
    source = source_places(places, places, size_in, size_out, align_corners)
    source = source.clamp(0, size_in - 1)
    low = source.floor().long()
    share = source - low
    column = torch.stack([low, (low + 1).clamp(max=size_in - 1)], dim=1)
    return Taps(column, torch.stack([1 - share, share], dim=1))
