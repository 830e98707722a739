r"""Labels of upsampled logits, without holding the logits at full resolution.

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

Use. :class:`Strips` yields an image in strips of rows, each as soon as its logits have
been computed, and a :class:`Strip` computes its tiles one by one. :func:`strip_labels`
keeps each tile's labels and, if wanted, their probabilities, and passes the tile to a
callback that sums something over all pixels, such as a loss.

On a GPU, products of float32 logits have the precision of matrix products, which is
that of float32 unless a user allows TF32 for them. Those of logits in half precision
have the precision of convolutions: by default TF32, which has no fewer significant bits
than such logits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from .interpolation import source_places
from .precision import precision_of_convolutions

# Bytes of a tile's logits: within the cache of a CPU's core; elsewhere few kernels,
# whose matrices are not mostly zeros.
CPU_BUDGET = 1 << 20
ACCELERATOR_BUDGET = 40 << 20
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


class Tiling(NamedTuple):
    """How an image is cut into tiles: their side; type and place of their logits."""

    side: int
    dtype: torch.dtype
    device: torch.device


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


class Strip(NamedTuple):
    """Some neighboring rows of an image, at full resolution.

    Args:
        rows: of the image.
        views: of the image.
        blocks: the rows, for each of the views.
        tiling: of the image.
    """

    rows: slice
    views: Sequence[View]
    blocks: Sequence[Block]
    tiling: Tiling

    def tiles(self) -> Iterator[tuple[slice, list[Tensor]]]:
        """Make the strip's tiles, from left to right.

        Yields:
            Columns of the image, and each view's logits there, (rows, columns,
            classes), in float32 or float64.
        """
        axes = [blocks(view.columns, *self.tiling) for view in self.views]
        for columns in zip(*axes, strict=True):
            tiles = map(upsampled_tile, self.views, self.blocks, columns)
            yield columns[0].outputs, list(tiles)


class Strips:
    """The strips of an image, each yielded as soon as its logits have been computed.

    Args:
        views: of the image; rows and columns of the same final size. Logits of a single
            one may be filled in row by row.
        tiling: of the image.
    """

    def __init__(self, views: Sequence[View], tiling: Tiling) -> None:
        axes = [blocks(view.rows, *tiling) for view in views]
        strips = [
            Strip(rows[0].outputs, views, rows, tiling)
            for rows in zip(*axes, strict=True)
        ]
        self._waiting = sorted(
            strips, key=lambda strip: (last_row(strip), strip.rows.start), reverse=True
        )

    def ready(self, rows: float = math.inf) -> Iterator[Strip]:
        """Yield, once each, the strips that need none but the first rows of logits."""
        while self._waiting and last_row(self._waiting[-1]) < rows:
            yield self._waiting.pop()


def last_row(strip: Strip) -> int:
    """Return the last row of logits that a strip needs of any view."""
    return max(block.last for block in strip.blocks)


def rows_to_hold(rows: Axis, tiling: Tiling) -> int:
    """Return how many windows' rows of logits have to be there at a time."""
    return max(
        strip.last // rows.logits - int(strip.inputs[0]) // rows.logits + 1
        for strip in blocks(rows, *tiling)
    )


def strip_labels(
    strip: Strip,
    threshold: float | None,
    *,
    confidence: bool = False,
    show: Callable[[slice, list[Tensor]], None] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return the labels of a strip by the mean of its views' probabilities.

    Args:
        strip: of an image.
        threshold: the least probability of the foreground, if there is one class.
        confidence: whether to return the labels' probabilities.
        show: is called with each tile's columns and logits, one for each view.

    Returns:
        Labels, (rows, W), int64, and the mean probability of each, float32 or float64,
        or None.
    """
    view = strip.views[0]
    size = strip.rows.stop - strip.rows.start, view.columns.size
    labels = view.logits.new_empty(size, dtype=torch.int64)
    kept = None
    if confidence:
        dtype = torch.promote_types(view.logits.dtype, torch.float32)
        kept = view.logits.new_empty(size, dtype=dtype)
    for columns, tiles in strip.tiles():
        if show is not None:
            show(columns, tiles)
        if kept is None:
            labels[:, columns] = tile_labels(tiles, threshold)
        else:
            labels[:, columns], kept[:, columns] = confident_labels(tiles, threshold)
    return labels, kept


@torch.no_grad()
def upsampled_tile(view: View, rows: Block, columns: Block) -> Tensor:
    """Return an image's logits in some rows and columns, (rows, columns, classes)."""
    places = (rows.inputs % len(view.logits))[:, None], columns.inputs
    part = view.logits[places]
    is_half = part.dtype.itemsize < 4
    precision = precision_of_convolutions() if is_half else nullcontext()
    part = part.to(rows.matrix.dtype)
    with torch.autocast(part.device.type, enabled=False), precision:
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
    if len(tiles) == 1 and not is_binary(tiles):  # the largest logit: most probable
        return tiles[0].argmax(-1)
    mean = mean_probabilities(tiles)
    return mean[..., 0] > threshold if is_binary(tiles) else mean.argmax(-1)


def confident_labels(
    tiles: Sequence[Tensor], threshold: float | None
) -> tuple[Tensor, Tensor]:
    """Return the labels of :func:`tile_labels` and the probability of each."""
    if is_binary(tiles):
        foreground = mean_probabilities(tiles)[..., 0]
        labels = foreground > threshold
        return labels, torch.where(labels, foreground, 1 - foreground)
    if len(tiles) == 1:
        largest, labels = tiles[0].max(-1)
        return labels, (largest - tiles[0].logsumexp(-1)).exp()
    probability, labels = mean_probabilities(tiles).max(-1)
    return labels, probability


def mean_probabilities(tiles: Sequence[Tensor]) -> Tensor:
    """Return the mean of views' probabilities, (rows, columns, classes)."""
    total = torch.zeros_like(tiles[0])
    for tile in tiles:
        total += tile.sigmoid() if is_binary(tiles) else tile.softmax(-1)
    return total / len(tiles)


def is_binary(tiles: Sequence[Tensor]) -> bool:
    """Return whether there is a single class, beside the background."""
    return tiles[0].shape[-1] == 1


def tiling(logits: Tensor, *, in_cache: bool) -> Tiling:
    """Choose the size of tiles.

    Args:
        logits: (..., classes).
        in_cache: whether a tile has to fit the cache of a CPU's core.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    numbers = (CPU_BUDGET if in_cache else ACCELERATOR_BUDGET) // dtype.itemsize
    side = max(math.isqrt(numbers // logits.shape[-1]), 1)
    return Tiling(side, dtype, logits.device)


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
