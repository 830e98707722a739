"""Read images a few rows at a time."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, Protocol

import numpy as np

from ...errors import SettingError

TIFFS = ('.tif', '.tiff')
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
