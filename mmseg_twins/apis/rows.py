"""Read images and write results a few rows at a time, in bounded memory.

A row source (:class:`RowSource`) returns any range of an image's rows. A row sink
(:func:`row_sink`) takes the rows of a result from top to bottom, and writes its file
completely or not at all.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import torch
from mmseg.models import SegDataPreProcessor
from mmseg.utils import stack_batch
from torch import Tensor

from ..checkpoints.writing import check_writable, replacing
from ..errors import SettingError

TIFFS = ('.tif', '.tiff')
RAW = 'raw'
TILE = 256
MIN_CACHE = 16 << 20  # bytes of decoded tiles that GDAL may keep


class PredictionError(RuntimeError):
    """An image cannot be read or predicted; the message is the reason."""


class EndOfRows(PredictionError):  # noqa: N818, more telling without "Error"
    """A file cannot be read to its last row."""


class RowSource(Protocol):
    """An image that is read a few rows at a time.

    Attributes:
        shape: height, width and number of bands.
        dtype: type of the values.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the rows from ``start`` to before ``stop``, (rows, width, bands).

        Colors are in the order red, green, blue.
        """
        ...


class ArrayRows:
    """The rows of an array or a ``numpy.memmap``, (H, W, bands) or (H, W)."""

    def __init__(self, pixels: np.ndarray) -> None:
        self._pixels = pixels if pixels.ndim == 3 else pixels[..., None]
        self.shape, self.dtype = self._pixels.shape, pixels.dtype

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the rows from ``start`` to before ``stop``, (rows, width, bands)."""
        return self._pixels[start:stop]


class Georeference(NamedTuple):
    """The georeference of an image: rasterio's ``crs`` and ``transform``."""

    crs: object
    transform: object


class TiffRows:
    """The rows of a TIFF, without holding any of them.

    Args:
        file: the file as opened by rasterio.
        bands: numbers of the bands to read, from 1.

    Attributes:
        georeference: the file's, or None.
    """

    def __init__(self, path: Path, file, bands: Sequence[int]) -> None:
        self._path, self._file, self._bands = path, file, list(bands)
        self.shape = file.height, file.width, len(self._bands)
        self.dtype = np.result_type(*file.dtypes)
        has_place = file.crs is not None or not file.transform.is_identity
        self.georeference = (
            Georeference(file.crs, file.transform) if has_place else None
        )

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the rows from ``start`` to before ``stop``, (rows, width, bands).

        Raises:
            EndOfRows: the file is truncated or damaged.
        """
        if (rows := self._read(start, stop)) is not None:
            return rows
        each = (row for row in range(start, stop) if self._read(row, row + 1) is None)
        raise EndOfRows(
            f'{self._path} cannot be read beyond row {next(each, stop)} of '
            f'{self.shape[0]}'
        )

    def _read(self, start: int, stop: int) -> np.ndarray | None:
        rasterio = import_rasterio()
        window = rasterio.windows.Window(0, start, self.shape[1], stop - start)
        try:
            rows = self._file.read(self._bands, window=window)
        except rasterio.errors.RasterioIOError:
            return None
        return np.moveaxis(rows, 0, -1)


def is_tiff(path: str | Path) -> bool:
    """Return whether the name of a file is that of a TIFF."""
    return Path(path).suffix.lower() in TIFFS


def part_of(path: Path) -> Path:
    """Return the path of an incomplete result, of an image that cannot be read on."""
    return path.with_suffix(f'.part{path.suffix}')


def import_rasterio() -> ModuleType:
    """Return rasterio.

    Raises:
        SettingError: it is not installed.
    """
    try:
        import rasterio
        import rasterio.windows
    except ImportError as error:
        raise SettingError(
            'sliding windows over TIFFs need rasterio, which is not installed; run: '
            "pip install 'mmseg_twins[tiff]'"
        ) from error
    return rasterio


def opened_tiff(path: Path, mode: str = 'r', **creation):
    """Open a TIFF with ``rasterio.open``, without its warnings about georeferences."""
    rasterio = import_rasterio()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', rasterio.errors.NotGeoreferencedWarning)
        return rasterio.open(path, mode, **creation)


@contextmanager
def tiff_rows(
    path: Path, bands: Sequence[int] | None, channels: int
) -> Iterator[TiffRows]:
    """Open a TIFF, or another file that GDAL reads.

    Args:
        bands: numbers of the bands to read, from 1. By default all but transparency; a
            single gray band is repeated.
        channels: number of bands that the model takes.

    Raises:
        PredictionError: the file cannot be read, it does not have the bands, or the
            default does not fit the model.
    """
    rasterio = import_rasterio()
    try:
        file = opened_tiff(path)
    except rasterio.errors.RasterioIOError as error:
        reason = 'it cannot be decoded' if path.is_file() else 'there is no such file'
        raise PredictionError(reason) from error
    itemsize = max(np.dtype(dtype).itemsize for dtype in file.dtypes)
    row_of_tiles = file.block_shapes[0][0] * file.width * file.count * itemsize
    # GDAL's default is 5 % of the machine's memory.
    cache = max(4 * row_of_tiles, MIN_CACHE)
    with file, rasterio.Env(GDAL_CACHEMAX=cache):
        yield TiffRows(path, file, choose_bands(file, bands, channels))


def choose_bands(file, bands: Sequence[int] | None, channels: int) -> Sequence[int]:
    """Return the numbers of the bands to read, as :func:`tiff_rows` describes."""
    if bands is not None:
        if max(bands) > file.count:
            raise PredictionError(
                f'it has {file.count} bands, so --bands cannot include {max(bands)}'
            )
        return bands
    kinds = [kind.name for kind in file.colorinterp]
    if 'palette' in kinds:
        raise PredictionError(
            'its values are indices into a palette; convert it to colors first '
            '(gdal_translate -expand rgb)'
        )
    found = [band for band, kind in enumerate(kinds, 1) if kind != 'alpha']
    if channels == file.count:
        found = list(range(1, channels + 1))
    if len(found) == 1:
        found *= channels
    if len(found) != channels:
        some = ' '.join(map(str, range(1, channels + 1)))
        raise PredictionError(
            f'it has {file.count} bands, but the model takes {channels}; choose them '
            f'with --bands, such as --bands {some}'
        )
    return found


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


class PngSink:
    """A result that is collected in memory, and written as a PNG file at the end.

    For the arguments see :func:`row_sink`.

    Attributes:
        rows: number of rows so far.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, ...],
        dtype: type,
        finish: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        self.path, self._finish = path, finish
        self._pixels = np.empty(shape, dtype)
        self.rows = 0

    def write(self, rows: np.ndarray) -> None:
        """Take the next rows."""
        self._pixels[self.rows : self.rows + len(rows)] = rows
        self.rows += len(rows)

    def save(self, path: Path, *, force: bool) -> None:
        """Write the rows so far."""
        write_png(path, self._finish(self._pixels[: self.rows]), force=force)


class TiffSink:
    """A tiled and compressed TIFF that is written a row of tiles at a time.

    It is written to the file ``temporary``; for the other arguments see
    :func:`row_sink`.

    Attributes:
        rows: number of rows so far.
    """

    def __init__(
        self,
        path: Path,
        temporary: Path,
        shape: tuple[int, ...],
        dtype: type,
        georeference: Georeference | None,
    ) -> None:
        self.path = path
        self._shape, self._dtype, self._georeference = shape, dtype, georeference
        self._waiting = np.empty((0, *shape[1:]), dtype)
        self.rows = 0
        place = georeference._asdict() if georeference else {}
        self._file = opened_tiff(
            temporary,
            'w+',  # because `save` reads it again
            driver='GTiff',
            height=shape[0],
            width=shape[1],
            count=shape[2] if len(shape) > 2 else 1,
            dtype=dtype,
            tiled=True,
            blockxsize=TILE,
            blockysize=TILE,
            compress='deflate',
            interleave='pixel',
            bigtiff='if_safer',
            **place,
        )

    def write(self, rows: np.ndarray) -> None:
        """Take the next rows."""
        self._waiting = np.concatenate([self._waiting, rows])
        self.rows += len(rows)
        count = len(self._waiting)
        if self.rows < self._shape[0]:
            count -= count % TILE
        if count:
            start = self.rows - len(self._waiting)
            bands = np.atleast_3d(self._waiting[:count]).transpose(2, 0, 1)
            self._file.write(bands, window=self._window(start, start + count))
            self._waiting = self._waiting[count:].copy()

    def _window(self, start: int, stop: int):
        return import_rasterio().windows.Window(0, start, self._shape[1], stop - start)

    def save(self, path: Path, *, force: bool) -> None:
        """Write the rows so far to another file."""
        shape = self.rows, *self._shape[1:]
        written = self.rows - len(self._waiting)
        with row_sink(
            path, shape, self._dtype, georeference=self._georeference, force=force
        ) as sink:
            for start in range(0, written, TILE):
                window = self._window(start, min(start + TILE, written))
                bands = self._file.read(window=window).transpose(1, 2, 0)
                sink.write(bands.reshape(-1, *shape[1:]))
            sink.write(self._waiting)

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


RowSink = PngSink | TiffSink


@contextmanager
def row_sink(
    path: Path,
    shape: tuple[int, ...],
    dtype: type,
    *,
    force: bool,
    georeference: Georeference | None = None,
    finish: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> Iterator[RowSink]:
    """Write rows to a file, completely or not at all.

    Args:
        path: a TIFF, which is written as rows arrive, or a PNG file.
        shape: (H, W) or (H, W, 3).
        dtype: uint8 or, for (H, W), uint16.
        force: whether an existing file may be replaced.
        georeference: a TIFF's.
        finish: for a PNG file, a function of all rows that returns the image to write.

    Raises:
        OSError: it cannot be written, or exists without ``force``.
    """
    for one in (path, part_of(path)):
        check_writable(one, force=force, suffixes=(*TIFFS, '.png'))
    if not is_tiff(path):
        png = PngSink(path, shape, dtype, finish)
        yield png
        png.save(path, force=force)
        return
    rasterio = import_rasterio()
    with replacing(path, force=force) as temporary:
        try:
            tiff = TiffSink(path, temporary, shape, dtype, georeference)
            try:
                yield tiff
            finally:
                tiff.close()
            check_tiles(temporary)
        except rasterio.errors.RasterioError as error:
            raise OSError(
                f'{path} could not be written ({error.__cause__ or error}); the disk '
                'may be full'
            ) from error


@contextmanager
def keeping_parts(sinks: Sequence[RowSink], *, force: bool) -> Iterator[None]:
    """Save the rows so far to :func:`part_of` each file if the image ends early.

    Args:
        force: whether existing files may be replaced.

    Raises:
        EndOfRows: the image ends early; the message names the files.
    """
    try:
        yield
    except EndOfRows as error:
        rows = min(sink.rows for sink in sinks)
        if not rows:
            raise EndOfRows(f'{error}, too early for any prediction') from error
        for sink in sinks:
            sink.save(part_of(sink.path), force=force)
        names = ', '.join(str(part_of(sink.path)) for sink in sinks)
        raise EndOfRows(f'{error}; its first {rows} rows are in {names}') from error


def check_tiles(path: Path) -> None:
    """Check that no tile of a TIFF is missing; GDAL does not report that on closing.

    Raises:
        RasterioIOError: a tile is missing.
    """
    size = path.stat().st_size
    with opened_tiff(path) as file:
        for (row, column), _ in file.block_windows(1):
            place, length = (
                int(file.get_tag_item(f'BLOCK_{name}_{column}_{row}', 'TIFF', 1) or 0)
                for name in ('OFFSET', 'SIZE')
            )
            if not place or place + length > size:
                raise import_rasterio().errors.RasterioIOError('tiles are missing')


def eight_bits(confidence: np.ndarray) -> np.ndarray:
    """Convert probabilities to 8 bits for files: 255 is certain."""
    return np.rint(255 * confidence).astype(np.uint8)


def write_png(path: Path, pixels: np.ndarray, *, force: bool) -> None:
    """Write a PNG file atomically, and create its folder if need be.

    Args:
        pixels: (H, W) uint8 or uint16, or (H, W, 3) uint8, RGB.
        force: whether an existing file may be replaced.

    Raises:
        OSError: it cannot be written, or exists without ``force``.
    """
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    is_encoded, content = cv2.imencode('.png', pixels)
    if not is_encoded:
        raise OSError(f'OpenCV cannot encode {path}')
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, force=force) as temporary:
        temporary.write_bytes(content.tobytes())
