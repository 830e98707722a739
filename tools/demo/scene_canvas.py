"""A canvas for street scenes: light, camera, shapes, and the class of each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import cv2
import numpy as np

Rgb = Sequence[float]
NEAR = 0.7  # meters
OVERSAMPLING = 2


class Label(IntEnum):
    """Labels of pixels, numbered as in ADE20K: classes from 1, and 0 is ignored."""

    OTHER, SKY, BUILDING, ROAD, PAVEMENT, GRASS, TREE, CAR, PERSON = range(9)


class Mood(NamedTuple):
    """The light of a scene; colors are RGB, those of lights relative to white."""

    zenith: Rgb
    horizon: Rgb  # also of haze
    sun: Rgb
    ambient: Rgb
    elevation: float  # of the sun, in radians
    azimuth: tuple[float, float]  # range of the angle between sun and street
    shadow: float  # share of the light that shadows take away
    clouds: float  # share of the sky
    sight: float  # meters at which haze hides 63 % of a color


# fmt: off
MOODS = {
    'day': Mood((58, 124, 206), (205, 228, 242), (0.62, 0.57, 0.46), (0.58, 0.62, 0.70),
                0.85, (1.7, 2.7), 0.42, 0.5, 320),
    'golden': Mood((92, 136, 190), (252, 218, 168), (0.62, 0.45, 0.25),
                   (0.55, 0.52, 0.57), 0.45, (1.2, 2.2), 0.40, 0.4, 200),
    'overcast': Mood((146, 160, 176), (214, 219, 222), (0.14, 0.14, 0.14),
                     (0.74, 0.76, 0.79), 1.3, (0, 3), 0.0, 0.95, 110),
    'dusk': Mood((66, 66, 128), (248, 168, 132), (0.42, 0.24, 0.16), (0.56, 0.47, 0.60),
                 0.16, (0.05, 0.3), 0.22, 0.5, 210),
}
# fmt: on


class Canvas:
    """Projects points in meters (x right, y up, z ahead) and paints shapes.

    Colors are painted with their depth, which haze depends on, and at a multiple of the
    result's size, which smooths the edges.

    Args:
        rng: source of all random numbers.
        size: width and height of the result in pixels.
        mood: one of ``MOODS``.
        eye: position of the camera, x and y.
        turn: how far the end of the street is right of the middle, as a share of the
            width.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        size: tuple[int, int],
        mood: str,
        eye: tuple[float, float],
        turn: float,
    ) -> None:
        self.rng, self.size, self.mood, self.eye = rng, size, MOODS[mood], eye
        self.lamps_on = mood == 'dusk'
        width, height = (OVERSAMPLING * side for side in size)
        self.colors = np.zeros((height, width, 4), np.float32)  # RGB and depth
        self.labels = np.full((height, width), Label.SKY, np.uint8)
        self.shadows = np.zeros((height, width), np.float32)
        self.focal = width * rng.uniform(0.72, 0.92)
        self.center = (width * (0.5 + turn), height * rng.uniform(0.46, 0.54))
        self.glass = np.dot((0.23, 0.11), self.mood[:2])  # it reflects the sky
        self.bend = rng.normal(0, 0.0008)  # of the street, meters to the right by z²
        angle = rng.uniform(*self.mood.azimuth) * rng.choice([-1, 1])
        up, flat = np.sin(self.mood.elevation), np.cos(self.mood.elevation)
        self.sun = np.array([flat * np.sin(angle), up, flat * np.cos(angle)])

    def pick(self, colors: Sequence[Rgb]) -> np.ndarray:
        """Pick one of the colors and vary it a little."""
        color = np.array(colors[self.rng.integers(len(colors))])
        color = color * self.rng.normal(1, 0.05) + self.rng.normal(0, 5, 3)
        return color.clip(8, 250)

    def lit(self, color: Rgb, normals: Sequence) -> np.ndarray:
        """Return the lit colors (..., 3) of surfaces with normals (..., 3)."""
        facing = np.maximum(0, np.asarray(normals) @ self.sun)[..., None]
        return np.asarray(color) * (self.mood.ambient + facing * self.mood.sun)

    def project(self, points: Sequence) -> np.ndarray:
        """Project points (N, 3) to pixels (N, 2)."""
        x, y, z = np.asarray(points, float).T
        z = np.maximum(z, NEAR)
        u = self.center[0] + self.focal * ((x - self.eye[0]) / z + self.bend * z)
        v = self.center[1] - self.focal * (y - self.eye[1]) / z
        return np.stack([u, v], 1).round().astype(np.int32)

    def fill(self, points: Sequence, color: Rgb, label: int) -> None:
        """Fill the polygon of points (N, 3)."""
        depth = max(NEAR, sum(point[2] for point in points) / len(points))
        pixels = [self.project(points)]
        cv2.fillPoly(self.colors, pixels, _scalar(color, depth))
        cv2.fillPoly(self.labels, pixels, label)

    def strip(
        self, low: Sequence, high: Sequence, along: Sequence, color: Rgb, label: int
    ) -> None:
        """Fill the parallelogram from ``low`` to ``high`` and ``along``, each (3,)."""
        low, high, along = map(np.asarray, (low, high, along))
        self.fill([low, low + along, high + along, high], color, label)

    def line(self, points: Sequence, width: float, color: Rgb, label: int) -> None:
        """Draw a line through points (N, 3), ``width`` meters wide, with round ends."""
        pixels, depth = [self.project(points)], points[0][2]
        thick = max(1, round(width * self.focal / depth))
        cv2.polylines(self.colors, pixels, False, _scalar(color, depth), thick)
        cv2.polylines(self.labels, pixels, False, label, thick)

    def discs(self, points: np.ndarray, radius: float, colors: Sequence, label: int):
        """Fill circles around points (N, 3), of colors (N, 3)."""
        size = max(1, round(radius * self.focal / points[0][2]))
        for pixel, point, color in zip(
            self.project(points).tolist(), points, colors, strict=True
        ):
            cv2.circle(self.colors, pixel, size, _scalar(color, point[2]), -1)
            cv2.circle(self.labels, pixel, size, label, -1)

    def cast(self, outline: Sequence, bottom: float, top: float) -> None:
        """Darken the ground in the shadow of a prism, and where it touches the ground.

        Args:
            outline: its base, points (N, 2) of x and z.
            bottom: height of its lower end in meters.
            top: height of its upper end in meters.
        """
        away = -self.sun[[0, 2]] / max(self.sun[1], 0.25)
        parts = [(bottom, top, self.mood.shadow), (0, 0, 0.45 * (bottom < 0.5))]
        for low, high, strength in parts:
            flat = np.concatenate([outline + away * low, outline + away * high])
            if strength and flat[:, 1].max() > NEAR:
                hull = cv2.convexHull(self.project(np.insert(flat, 1, 0, axis=1)))
                cv2.fillPoly(self.shadows, [hull], strength)

    def noise(self, height: int, width: int, octaves: int = 5) -> np.ndarray:
        """Return smooth noise (height, width) between 0 and 1."""
        total = np.zeros((height, width), np.float32)
        for octave in range(octaves):
            coarse = self.rng.random((4 << octave, 3 << octave), np.float32)
            fine = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
            total += fine / 2**octave
        return cv2.normalize(total, None, 0, 1, cv2.NORM_MINMAX)

    def paint_sky(self) -> None:
        """Paint the sky: a gradient, the sun's glow, and clouds."""
        height, width = self.labels.shape
        v, u = np.mgrid[:height, :width].astype(np.float32)
        zenith, horizon = (np.array(c, np.float32) for c in self.mood[:2])
        up = np.clip(1 - v / self.center[1], 0, 1)[..., None] ** 0.7
        sky = horizon + up * (zenith - horizon)
        if self.sun[2] > 0.5:
            x, y = self.project([1e3 * self.sun + (*self.eye, 0)])[0]
            x -= self.focal * self.bend * 1e3 * self.sun[2]
            far = np.hypot(u - x, v - y)[..., None] / width
            glow = 0.55 * np.exp(-7 * far) + (far < 0.03)
            sky += glow * (np.float32([255, 236, 190]) - 0.4 * sky)
        noise = self.noise(height, width)
        cover = np.clip((noise - 1 + self.mood.clouds) / 0.28, 0, 1)[..., None]
        # Clouds are brightest on top, where they are thinnest.
        rise = np.clip(8 * (noise - np.roll(noise, -height // 40, 0)), -1, 1)[..., None]
        white = 0.5 * horizon + 0.5 * self.lit((255, 255, 255), self.sun).clip(0, 255)
        sky += 0.85 * cover * (white - 16 + 22 * rise - sky)
        self.colors[..., :3] = sky

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Add shadows, haze, bloom and noise; return the image and its labels."""
        ground = np.isin(self.labels, (Label.ROAD, Label.PAVEMENT, Label.GRASS))
        shadows = cv2.GaussianBlur(self.shadows, (0, 0), OVERSAMPLING) * ground
        colors = self.colors[..., :3] * (1 - shadows[..., None])
        horizon = np.float32(self.mood.horizon)
        seen = np.exp(self.colors[..., 3:] * (-1 / self.mood.sight))
        image = horizon + (colors - horizon) * seen
        image = cv2.resize(image, self.size, interpolation=cv2.INTER_AREA)
        bright = np.maximum(image - 225, 0)
        image += 0.8 * cv2.GaussianBlur(bright, (0, 0), self.size[0] / 50)
        across, down = (np.linspace(-1, 1, side) ** 2 for side in self.size)
        image *= 1.02 - 0.08 * (across + down[:, None])[..., None]
        image = (image - 120) * self.rng.uniform(1.0, 1.12) + 124
        image += self.rng.normal(0, 1.6, image.shape)
        labels = self.labels[1::OVERSAMPLING, 1::OVERSAMPLING]
        return image.clip(0, 255).astype(np.uint8), np.ascontiguousarray(labels)


def _scalar(color: Rgb, depth: float) -> tuple[float, ...]:
    return tuple(map(float, (*color, depth)))
