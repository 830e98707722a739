"""Street lamps and traffic signs: thin things, which are not scored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streets.street.camera import Camera
from streets.street.canvas import Canvas
from streets.street.labels import Label
from streets.street.light import Light

_METAL = (84, 88, 92)


@dataclass(frozen=True)
class Pole:
    """A pole with something on it.

    Args:
        x: World X in metres.
        z: World Z in metres.
        kind: ``'lamp'``, ``'ban'``, ``'warning'`` or ``'parking'``.
        reach: From the pole to the lamp, in metres along world X.
    """

    x: float
    z: float
    kind: str
    reach: float = 0.0


def paint_pole(canvas: Canvas, camera: Camera, light: Light, pole: Pole) -> None:
    """Paint a pole that is in front of the camera, with its lamp or sign."""
    foot, metre = camera.place((pole.x, 0.0, pole.z))
    depth = camera.depth(pole.x, pole.z)
    metal = light.shade(_METAL, (0.0, 0.3, -0.5), depth)

    def at(right: float, up: float) -> np.ndarray:
        return np.array([foot[0] + right * metre, foot[1] - up * metre])

    if pole.kind == 'lamp':
        canvas.limb(at(0, 0), at(0, 1.1), 0.17 * metre, metal, Label.OTHER)
        canvas.limb(at(0, 1), at(0, 5.6), 0.1 * metre, metal, Label.OTHER)
        bend = np.linspace(0, np.pi / 2, 5)
        arm = [
            at(pole.reach * (1 - np.cos(angle)), 5.6 + 0.5 * np.sin(angle))
            for angle in bend
        ]
        for start, end in zip(arm[:-1], arm[1:], strict=True):
            canvas.limb(start, end, 0.08 * metre, metal, Label.OTHER)
        head = at(pole.reach * 1.05, 6.08), at(pole.reach * 1.5, 6.04)
        canvas.limb(*head, 0.17 * metre, metal, Label.OTHER)
        if light.lamps_on:
            bulb = (255, 236, 180)
            canvas.limb(
                head[0] + (0, 0.07 * metre),
                head[1] + (0, 0.07 * metre),
                0.14 * metre,
                bulb,
                Label.OTHER,
            )
        return

    canvas.limb(at(0, 0), at(0, 2.6), 0.07 * metre, metal, Label.OTHER)
    facing = (0.0, 0.4, -0.6)
    red = light.shade((196, 36, 40), facing, depth)
    white = light.shade((236, 236, 232), facing, depth)
    blue = light.shade((36, 84, 160), facing, depth)
    middle = at(0, 2.5)
    if pole.kind == 'ban':
        canvas.disc(middle, 0.36 * metre, red, Label.OTHER)
        canvas.disc(middle, 0.26 * metre, white, Label.OTHER)
    elif pole.kind == 'warning':
        canvas.fill(_triangle(middle, 0.46 * metre), red, Label.OTHER)
        canvas.fill(_triangle(middle, 0.27 * metre), white, Label.OTHER)
    else:
        half = 0.32 * metre
        square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
        canvas.fill(middle + square, blue, Label.OTHER)
        canvas.limb(
            middle + (-0.3 * half, 0.55 * half),
            middle + (-0.3 * half, -0.55 * half),
            0.22 * half,
            white,
            Label.OTHER,
        )
        canvas.disc(middle + (0.05 * half, -0.25 * half), 0.36 * half, white, None)
        canvas.disc(middle + (0.05 * half, -0.25 * half), 0.15 * half, blue, None)


def _triangle(middle: np.ndarray, radius: float) -> np.ndarray:
    angles = np.array([-90, 30, 150]) * np.pi / 180
    return middle + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
