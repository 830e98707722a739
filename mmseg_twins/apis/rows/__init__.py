"""Read images and write results a few rows at a time, in bounded memory.

A row source (:class:`RowSource`) returns any range of an image's rows. A row sink
(:func:`row_sink`) takes the rows of a result from top to bottom, and writes its file
completely or not at all.
"""

from __future__ import annotations

from .sinks import RowSink, eight_bits, keeping_parts, part_of, row_sink, write_png
from .sources import (
    ArrayRows,
    EndOfRows,
    PredictionError,
    RowSource,
    import_rasterio,
    is_tiff,
    tiff_rows,
)
from .windows import RAW, Scale, Windows

__all__ = [
    'RAW',
    'ArrayRows',
    'EndOfRows',
    'PredictionError',
    'RowSink',
    'RowSource',
    'Scale',
    'Windows',
    'eight_bits',
    'import_rasterio',
    'is_tiff',
    'keeping_parts',
    'part_of',
    'row_sink',
    'tiff_rows',
    'write_png',
]
