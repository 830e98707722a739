"""The sky: a gradient, the sun's glow, and clouds on a plane overhead."""

from __future__ import annotations

import cv2
import numpy as np

from streets.street.camera import Camera
from streets.street.canvas import Canvas
from streets.street.labels import Label
from streets.street.light import Light, Rgb
from streets.street.noise import TILE, fractal_tile, sample, smoothstep


def paint_sky(
    canvas: Canvas, camera: Camera, light: Light, rng: np.random.Generator
) -> None:
    """Fill the canvas with sky, down to the horizon."""
    width = canvas.labels.shape[1]
    # A little more than the ground leaves free, at half the resolution: the sky
    # has no edges.
    height = min(canvas.labels.shape[0], int(camera.horizon) + 4)
    rows = np.arange(1, height, 2, dtype=np.float32)[:, None]
    columns = np.arange(1, width, 2, dtype=np.float32)[None, :]
    across = (columns - width / 2) / camera.focal
    # Never below the horizon, where there is no sky.
    up = np.maximum((camera.horizon - rows) / camera.focal, 0.004)

    rise = np.clip(up / 0.75, 0, 1) ** 0.65
    colour = _mix(light.horizon, light.zenith, rise[..., None])
    colour = np.repeat(colour, columns.size, axis=1)
    if light.mood != 'overcast':
        colour += _glow(camera, light, across, up)

    depth = 1 / up
    start = rng.uniform(0, TILE, 2).tolist()
    scale = rng.uniform(34, 60)
    x = start[0] + across * depth * scale
    y = start[1] + np.repeat(depth, columns.size, axis=1) * scale
    tile = fractal_tile(1.55, 11)
    density = sample(tile, x, y)
    # Lit from one side: what rises towards the sun is bright, the rest is not.
    slope = density - sample(tile, x + 9 * light.sun[0], y + 9 * light.sun[2] + 3)
    threshold = 1.2 - 2.4 * light.clouds
    cover = smoothstep(threshold, threshold + 1.1, density)
    cover *= smoothstep(0.01, 0.12, up)
    white = {
        'day': (250, 250, 252),
        'dusk': (240, 158, 128),
        'overcast': (214, 217, 221),
    }[light.mood]
    dark = {
        'day': (186, 196, 212),
        'dusk': (122, 98, 132),
        'overcast': (150, 156, 164),
    }[light.mood]
    bright = np.clip(0.62 + 0.9 * slope, 0, 1)[..., None]
    clouds = _mix(dark, white, bright)
    colour = _mix(colour, clouds, (0.92 * cover)[..., None])

    small = np.clip(colour, 0, 255).astype(np.uint8)
    canvas.image[:height] = cv2.resize(small, (width, height))
    canvas.labels[:height] = Label.SKY


def _glow(
    camera: Camera, light: Light, across: np.ndarray, up: np.ndarray
) -> np.ndarray:
    """Brightness (H, W, 3) that the sun adds around itself."""
    sin, cos = np.sin(camera.yaw), np.cos(camera.yaw)
    right = light.sun[0] * cos - light.sun[2] * sin
    forward = light.sun[0] * sin + light.sun[2] * cos
    length = np.sqrt(across**2 + up**2 + 1)
    towards = (across * right + up * light.sun[1] + forward) / length
    away = (1 - towards)[..., None].astype(np.float32)
    if light.mood == 'dusk':
        halo = np.array([70, 42, 8], np.float32)
        return np.exp(-12 * away) * halo + np.exp(-900 * away) * 160
    halo = np.array([46, 40, 26], np.float32)
    return np.exp(-16 * away) * halo + np.exp(-1500 * away) * 200


def _mix(
    first: np.ndarray | Rgb, second: np.ndarray | Rgb, share: np.ndarray
) -> np.ndarray:
    first = np.asarray(first, np.float32)
    return first + (np.asarray(second, np.float32) - first) * share
