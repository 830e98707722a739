"""Cut windows out of images that are read a few rows at a time."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from mmseg.models import SegDataPreProcessor
from mmseg.utils import stack_batch
from torch import Tensor

from .sources import PredictionError, RowSource

RAW = 'raw'


class Scale(NamedTuple):
    """Conversion of an image's values to those that the model takes.

    Values of 8 bits are never scaled.

    Args:
        value_range: the values that become 0 and 255; values beyond are clipped.
            ``'raw'`` leaves values as they are; None allows 8 bits only.
        shown: the raw values that overlays show as black and white.
    """

    value_range: tuple[float, float] | str | None
    shown: tuple[float, float]

    def check(self, dtype: np.dtype) -> None:
        """Check that values of a type can be converted.

        Raises:
            PredictionError: they are not real numbers, or need a ``value_range``.
        """
        if dtype.kind not in 'uif':
            raise PredictionError(f'its values are {dtype}, not real numbers')
        if dtype != np.uint8 and self.value_range is None:
            raise PredictionError(
                f'its values are {dtype}, not 8 bits; give those that become 0 and 255 '
                'with --value-range LOW HIGH, or leave them as they are with '
                '--raw-values'
            )

    def values(self, pixels: np.ndarray) -> np.ndarray:
        """Return what the model takes, uint8 or float32."""
        if pixels.dtype == np.uint8:
            return pixels
        if self.value_range == RAW:
            return np.nan_to_num(pixels.astype(np.float32), copy=False)
        return stretched(pixels, self.value_range)

    def image(self, pixels: np.ndarray) -> np.ndarray:
        """Return the first three bands, or the first one in gray: (H, W, 3) uint8."""
        few = pixels[..., :3] if pixels.shape[2] > 2 else pixels[..., [0, 0, 0]]
        if few.dtype != np.uint8:
            limits = self.shown if self.value_range == RAW else self.value_range
            few = np.rint(stretched(few, limits)).astype(np.uint8)
        return np.ascontiguousarray(few)


def stretched(pixels: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Scale values between two limits to 0 to 255, and clip others; NaN becomes 0."""
    low, high = limits
    values = pixels.astype(np.float32)
    values -= low
    values *= 255 / (high - low)
    return np.nan_to_num(values.clip(0, 255, out=values), copy=False)


class Windows:
    """Cuts windows out of an image that is read row by row, and normalizes them.

    The values are those that the data preprocessor gives the whole image with its
    padding.

    Args:
        swaps: whether the model takes blue before red, as OpenCV reads colors.

    Attributes:
        size: height and width of the image with its padding.
        meta: the meta information of the image's sample.
    """

    def __init__(
        self,
        source: RowSource,
        preprocessor: SegDataPreProcessor,
        scale: Scale,
        *,
        swaps: bool,
    ) -> None:
        self._source, self._scale, self._swaps = source, scale, swaps
        self._normalize = copy.copy(preprocessor)
        self._normalize.test_cfg = None  # no padding
        self._padding_value = preprocessor.pad_val
        self._band: tuple[slice | None, np.ndarray | None] = None, None
        size = source.shape[:2]
        padding, self.size = padding_of(preprocessor, size)
        self.meta = dict(
            ori_shape=size,
            img_shape=size,
            pad_shape=self.size,
            img_padding_size=padding,
        )

    def cut(self, rows: slice, columns: slice) -> Tensor:
        """Return a window, (1, bands, h, w), normalized."""
        inside = torch.from_numpy(self._values(rows, columns))
        normalized = self._normalize({'inputs': [inside]}, False)['inputs']
        shape = rows.stop - rows.start, columns.stop - columns.start
        if normalized.shape[2:] == shape:
            return normalized
        window = normalized.new_full(
            (*normalized.shape[:2], *shape), self._padding_value
        )
        window[..., : normalized.shape[2], : normalized.shape[3]] = normalized
        return window

    def _values(self, rows: slice, columns: slice) -> np.ndarray:
        """Return a window without padding, (bands, h, w)."""
        if self._band[0] != rows:
            self._band = None, None  # frees it before the next one is read
            height = self._source.shape[0]
            band = self._source.read(min(rows.start, height), min(rows.stop, height))
            self._band = rows, band
        pixels = self._band[1][:, columns]
        if self._swaps and pixels.shape[2] in (3, 4):
            pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
        return self._scale.values(pixels).transpose(2, 0, 1).copy()


def padding_of(
    preprocessor: SegDataPreProcessor, size: tuple[int, int]
) -> tuple[Sequence[int], tuple[int, int]]:
    """Return a data preprocessor's padding of an image, and the size with it."""
    test_cfg: Mapping = preprocessor.test_cfg or {'size': size}
    _, (padded,) = stack_batch(
        [torch.empty(1, *size, device='meta')],
        size=test_cfg.get('size'),
        size_divisor=test_cfg.get('size_divisor'),
    )
    return padded['img_padding_size'], tuple(padded['pad_shape'])
