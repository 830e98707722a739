"""Regions in which an image is predicted: the whole image, or sliding windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ... import ops
from ...errors import SettingError

MODES = ('whole', 'slide')
FLIPS = (None, 'horizontal', 'vertical')


class Grid(NamedTuple):
    """Windows of one size: rows of them begin at ``ys``, columns at ``xs``."""

    ys: tuple[int, ...]
    xs: tuple[int, ...]
    height: int
    width: int


class Placement(NamedTuple):
    """How a predicted image becomes the one that was given.

    Args:
        rows: the first row that is no padding, and the one after the last.
        columns: likewise.
        flip: None, ``'horizontal'`` or ``'vertical'``.
        size: height and width that it is resized to.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    flip: str | None
    size: tuple[int, int]


def check_test_cfg(test_cfg: Mapping) -> None:
    """Check the settings of prediction.

    Args:
        test_cfg: the model's.

    Raises:
        SettingError: the mode is unknown, or windows cannot cover an image.
    """
    mode = test_cfg.get('mode', 'whole')
    if mode not in MODES:
        raise SettingError(f'test_cfg.mode={mode!r}; give one of {", ".join(MODES)}')
    if mode == 'whole':
        return
    for name in ('crop_size', 'stride'):
        value = test_cfg.get(name)
        if not is_pair(value):
            raise SettingError(
                f"test_cfg.{name}={value!r}; mode='slide' needs height and width of "
                f'{"a window" if name == "crop_size" else "a step"}, at least 1 px each'
            )
    crop_size, stride = test_cfg['crop_size'], test_cfg['stride']
    if any(step > side for step, side in zip(stride, crop_size, strict=True)):
        raise SettingError(
            f'test_cfg.stride={tuple(stride)} is more than '
            f'test_cfg.crop_size={tuple(crop_size)}: pixels between windows would have '
            'no label'
        )
    batch = test_cfg.get('batch_windows', 1)
    if not isinstance(batch, int) or batch < 1:
        raise SettingError(
            f'test_cfg.batch_windows={batch!r}; give a positive number of windows'
        )


def is_pair(value: object) -> bool:
    """Return whether a value is two positive integers."""
    return (
        isinstance(value, Sequence)
        and len(value) == 2
        and all(isinstance(side, int) and side > 0 for side in value)
    )


def sliding_grid(
    size: tuple[int, int], crop_size: tuple[int, int], stride: tuple[int, int]
) -> Grid:
    """Return the windows with which mmsegmentation covers an image.

    The last ones are moved back to end at the border of the image.
    """
    height, width = (min(pair) for pair in zip(crop_size, size, strict=True))
    return Grid(
        starts(size[0], height, stride[0]),
        starts(size[1], width, stride[1]),
        height,
        width,
    )


def starts(length: int, window: int, stride: int) -> tuple[int, ...]:
    """Return the starts of windows that cover an axis; the last window ends with it."""
    steps = -(-(length - window) // stride)
    return tuple(min(i * stride, length - window) for i in range(steps + 1))


def predicted_size(meta: Mapping) -> tuple[int, int]:
    """Return the size to which mmsegmentation resizes the logits of a whole batch.

    Args:
        meta: of the first image.
    """
    size = meta['img_shape']
    # mmsegmentation's windows, and batches without samples, have this type.
    if not isinstance(size, torch.Size):
        size = meta.get('pad_shape', size)
    return tuple(size[:2])


def placement(meta: Mapping, size: tuple[int, int]) -> Placement:
    """Return how mmsegmentation places the prediction of an image.

    Args:
        meta: of the image's sample.
        size: of the prediction, in pixels.
    """
    flip = meta['flip_direction'] if meta.get('flip') else None
    if flip not in FLIPS:
        raise SettingError(
            f"flip_direction={flip!r}; predictions can be 'horizontal' or 'vertical'"
        )
    left, right, top, bottom = meta.get(
        'img_padding_size', meta.get('padding_size', (0, 0, 0, 0))
    )
    height, width = size
    return Placement(
        rows=(top, height - bottom),
        columns=(left, width - right),
        flip=flip,
        size=tuple(meta['ori_shape'][:2]),
    )


class Mosaic:
    """The logits of the windows of images, side by side.

    Args:
        grid: the windows.
        metas: of the images' samples.
        like: logits of windows, (..., classes, h, w).
        align_corners: how logits are resized.
        hold_all: whether rows of windows stay when no label needs them any more.

    Attributes:
        views: of the images.
    """

    def __init__(
        self,
        grid: Grid,
        metas: Sequence[Mapping],
        like: Tensor,
        align_corners: bool,
        *,
        hold_all: bool,
    ) -> None:
        classes, *size = like.shape[-3:]
        size_of_all = grid.ys[-1] + grid.height, grid.xs[-1] + grid.width
        places = [placement(meta, size_of_all) for meta in metas]
        images = [axes(grid, size, place, align_corners) for place in places]
        like = like.movedim(-3, -1)
        self._held = len(grid.ys)
        if not hold_all:
            tiling = ops.tiling(like)
            self._held = max(ops.rows_to_hold(rows, tiling) for rows, _ in images)
        # (images, rows of windows, h, columns of windows, w, classes)
        self._logits = like.new_empty(
            len(metas), self._held, size[0], len(grid.xs), size[1], classes
        )
        self.views = [
            ops.View(logits.flatten(2, 3).flatten(0, 1), *image)
            for logits, image in zip(self._logits, images, strict=True)
        ]

    def put(self, logits: Tensor, row: int, column: int) -> int:
        """Put the logits of windows that lie beside each other into their place.

        Args:
            logits: (windows * images, classes, h, w).
            row: of the windows in the grid.
            column: of the first window.

        Returns:
            How many rows of logits there are once the row of windows is complete.
        """
        logits = logits.detach().unflatten(0, (-1, len(self._logits)))
        columns = slice(column, column + len(logits))
        self._logits[:, row % self._held, :, columns] = logits.permute(1, 3, 0, 4, 2)
        return (row + 1) * logits.shape[3]


def axes(
    grid: Grid, logits_size: tuple[int, int], place: Placement, align_corners: bool
) -> tuple[ops.Axis, ops.Axis]:
    """Return the rows and columns of an image in terms of its windows' logits."""
    rows = ops.Axis(
        starts=grid.ys,
        window=grid.height,
        logits=logits_size[0],
        crop=place.rows,
        flip=place.flip == 'vertical',
        size=place.size[0],
        align_corners=align_corners,
    )
    columns = ops.Axis(
        starts=grid.xs,
        window=grid.width,
        logits=logits_size[1],
        crop=place.columns,
        flip=place.flip == 'horizontal',
        size=place.size[1],
        align_corners=align_corners,
    )
    return rows, columns
