"""Write results a few rows at a time, completely or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from ...checkpoints.writing import check_writable, replacing
from .sources import (
    TIFFS,
    EndOfRows,
    Georeference,
    import_rasterio,
    is_tiff,
    opened_tiff,
)

TILE = 256


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


def part_of(path: Path) -> Path:
    """Return the path of an incomplete result, of an image that cannot be read on."""
    return path.with_suffix(f'.part{path.suffix}')


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
