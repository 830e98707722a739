"""Tileable noise, from which clouds, asphalt and grass are made."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

TILE = 512


@cache
def fractal_tile(exponent: float, seed: int) -> np.ndarray:
    """Fractal noise that repeats without a seam.

    White noise is filtered in the frequency domain, where the amplitude falls
    with the frequency to the power of ``exponent``; the Fourier transform is
    periodic, hence so is the tile.

    Args:
        exponent: 0 gives white noise, 1 a fine grain, 2 soft clouds.
        seed: Tiles of different seeds are unrelated.

    Returns:
        (TILE, TILE) float32 with mean 0 and standard deviation 1.
    """
    white = np.random.default_rng(seed).standard_normal((TILE, TILE))
    down = np.fft.fftfreq(TILE)[:, None]
    across = np.fft.rfftfreq(TILE)[None, :]
    frequency = np.hypot(down, across)
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(white) * frequency**-exponent
    tile = np.fft.irfft2(spectrum, s=(TILE, TILE))
    return ((tile - tile.mean()) / tile.std()).astype(np.float32)


def sample(tile: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Read a tile at any position, as if it were repeated without end.

    Args:
        tile: (TILE, TILE) noise.
        x: Columns, in pixels of the tile, of any shape.
        y: Rows, of the same shape.

    Returns:
        Interpolated noise of the shape of ``x``, float32.
    """
    # OpenCV reads maps of two dimensions, whose sides fit into 15 bits.
    count = x.size
    padded = np.zeros((2, -(-count // TILE), TILE), np.float32)
    for row, value in zip(padded, (x, y), strict=True):
        row.reshape(-1)[:count] = repeat(value, TILE).reshape(-1)
    read = cv2.remap(tile, *padded, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return read.reshape(-1)[:count].reshape(x.shape)


def repeat(value: np.ndarray, period: float) -> np.ndarray:
    """The same as ``np.mod``, several times faster; float32."""
    value = value.astype(np.float32, copy=False)
    return value - np.floor(value * np.float32(1 / period)) * np.float32(period)


def smoothstep(low: float, high: float, value: np.ndarray) -> np.ndarray:
    """Rise from 0 at ``low`` to 1 at ``high`` without a kink."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)
