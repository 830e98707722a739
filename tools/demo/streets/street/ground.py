"""The ground: road with markings, kerb, pavement and grass, and shadows on it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from streets.street.camera import Camera
from streets.street.canvas import Canvas
from streets.street.labels import Label
from streets.street.light import Light
from streets.street.noise import TILE, fractal_tile, repeat, sample

KERB_WIDTH = 0.22
LINE_WIDTH = 0.14


@dataclass(frozen=True)
class Street:
    """The street's plan; all lengths are metres.

    Positions are given as (s, z): s to the right of the street's middle, z
    along it. The street bends as a parabola.

    Args:
        half_road: From the middle to the kerb.
        verge: Width of the grass between kerb and pavement, 0 for none.
        pavement: Width of the pavement on either side.
        bend: The middle is at ``X = bend * z**2``.
        lanes: Number of lanes, parking not counted.
        parking: Width of the parking lane on either side, 0 for none.
        crossroads: Where a road crosses, as (from, to) along z, or None.
        zebra: Where a zebra crossing begins, or None.
    """

    half_road: float
    verge: float
    pavement: float
    bend: float
    lanes: int
    parking: float
    crossroads: tuple[float, float] | None
    zebra: float | None

    @property
    def edge(self) -> float:
        """From the middle to the pavement's far side."""
        return self.half_road + self.verge + self.pavement

    def x(self, s: float, z: float) -> float:
        """World X of a position."""
        return s + self.bend * z * z

    def heading(self, z: float) -> float:
        """Direction of the street at z, in radians to the right."""
        return float(np.arctan(2 * self.bend * z))

    def crosses(self, z: float, margin: float = 0.0) -> bool:
        """Whether z lies within the crossing road, widened by ``margin``."""
        if self.crossroads is None:
            return False
        start, end = self.crossroads
        return start - margin < z < end + margin


def paint_ground(
    canvas: Canvas,
    camera: Camera,
    light: Light,
    street: Street,
    shadows: list[tuple[np.ndarray, float]],
    rng: np.random.Generator,
) -> None:
    """Paint everything below the horizon.

    Args:
        canvas: Where to paint.
        camera: Where it is seen from.
        light: How it is lit.
        street: What it is.
        shadows: Polygons (N, 2) of (X, Z) on the ground, each with the share of
            the light that it takes.
        rng: Source of the details.
    """
    x, z, depth, first = camera.ground()
    s = x - street.bend * z * z
    side = np.abs(s)
    # Metres that a pixel covers, across the view and along it: edges are blurred
    # and patterns are faded by them, so that nothing flickers far away.
    across = depth / camera.focal
    along = depth * across / camera.eye[1]

    crossing = np.zeros(s.shape, bool)
    if street.crossroads is not None:
        crossing = (z > street.crossroads[0]) & (z < street.crossroads[1])
    is_road = (side < street.half_road) | crossing
    is_verge = (side > street.half_road + KERB_WIDTH) & (
        side < street.half_road + street.verge
    )
    if street.zebra is not None:
        # Nobody has to walk through the grass to cross the road.
        is_verge &= (z < street.zebra - 0.5) | (z > street.zebra + 3.5)
    if street.crossroads is not None:
        start, end = street.crossroads
        is_verge &= (z < start - street.pavement) | (z > end + street.pavement)
    is_pavement = ~is_road & ~is_verge & (side < street.edge)

    offset = tuple(rng.uniform(0, TILE, 2).tolist())
    colour = np.empty((*s.shape, 3), np.float32)
    here = ~is_road & ~is_pavement
    colour[here] = _grass(x[here], z[here], along[here], offset, rng)
    here = is_pavement
    colour[here] = _pavement(s[here], z[here], along[here], offset, rng)
    here = is_road
    colour[here] = _road(
        street,
        s[here],
        z[here],
        across[here],
        along[here],
        crossing[here],
        offset,
        rng,
    )
    kerb = _band(side, street.half_road + KERB_WIDTH / 2, KERB_WIDTH, across)
    here = (kerb > 0) & ~crossing
    stone = np.array([176, 174, 168], np.float32)
    colour[here] += (stone - colour[here]) * kerb[here][:, None]

    lit = light.lit((0.0, 1.0, 0.0)).astype(np.float32)
    dark = _shadow_map(canvas, camera, shadows)[first:]
    # A shadow keeps the sky's light, which is bluer than the sun's.
    tint = np.array([1.0, 0.96, 0.86], np.float32)
    here = dark > 0
    colour[here] *= 1 - dark[here][:, None] * tint
    colour *= lit
    # A row of the ground is equally far all along.
    colour = light.haze(colour, depth[:, :1])

    canvas.image[first:] = np.clip(colour, 0, 255).astype(np.uint8)
    labels = np.full(s.shape, Label.GRASS, np.uint8)
    labels[is_pavement] = Label.PAVEMENT
    labels[is_road] = Label.ROAD
    canvas.labels[first:] = labels


def _grass(
    x: np.ndarray,
    z: np.ndarray,
    along: np.ndarray,
    offset: tuple[float, float],
    rng: np.random.Generator,
) -> np.ndarray:
    base = np.array([88, 124, 62], np.float32) + rng.uniform(-12, 12, 3)
    patches = sample(fractal_tile(1.2, 21), x * 14 + offset[0], z * 14 + offset[1])
    blades = sample(fractal_tile(0.4, 22), x * 70 + offset[0], z * 40 + offset[1])
    bright = 1 + 0.13 * patches + 0.16 * blades * np.exp(-along * 14)
    return base.astype(np.float32) * bright[..., None]


def _pavement(
    s: np.ndarray,
    z: np.ndarray,
    along: np.ndarray,
    offset: tuple[float, float],
    rng: np.random.Generator,
) -> np.ndarray:
    base = np.array([172, 166, 156], np.float32) + rng.uniform(-10, 10)
    base += np.array([1, 0, -1]) * rng.uniform(-8, 10)
    slab = rng.uniform(0.5, 1.1)
    stains = sample(fractal_tile(1.3, 21), s * 22 + offset[0], z * 22 + offset[1])
    joints = np.maximum(
        _band(repeat(s, slab), slab / 2, 0.03, along / 3),
        _band(repeat(z, slab), slab / 2, 0.03, along),
    )
    # Slabs differ a little, as if some had been replaced.
    slabs = sample(
        fractal_tile(0.0, 23), np.floor(s / slab) * 7, np.floor(z / slab) * 13
    )
    near = np.exp(-along * 6)
    bright = 1 + 0.05 * stains + (0.025 * slabs - 0.2 * joints) * near
    return base.astype(np.float32) * bright[..., None]


def _road(
    street: Street,
    s: np.ndarray,
    z: np.ndarray,
    across: np.ndarray,
    along: np.ndarray,
    crossing: np.ndarray,
    offset: tuple[float, float],
    rng: np.random.Generator,
) -> np.ndarray:
    base = rng.uniform(78, 112) + np.array([0, 0, 3]) + rng.uniform(-3, 3, 3)
    stains = sample(fractal_tile(1.4, 24), s * 9 + offset[1], z * 4 + offset[0])
    grain = sample(fractal_tile(0.3, 25), s * 90 + offset[0], z * 60 + offset[1])
    bright = 1 + 0.05 * stains + 0.07 * grain * np.exp(-along * 16)
    # Wheels polish two tracks into every lane.
    lane = 2 * (street.half_road - street.parking) / street.lanes
    phase = repeat(s + street.half_road - street.parking, lane) / lane
    bright -= 0.05 * np.cos(4 * np.pi * phase) * ~crossing
    colour = base.astype(np.float32) * bright[..., None].astype(np.float32)

    paint = np.zeros(s.shape, np.float32)
    for boundary in range(street.lanes + 1):
        at = -street.half_road + street.parking + boundary * lane
        outer = boundary in (0, street.lanes)
        if outer and street.parking == 0:
            at += 0.35 if at < 0 else -0.35
        line = _band(s, at, LINE_WIDTH, across)
        if not outer:
            line *= _dashes(z, 6.0, 3.0, along)
        paint = np.maximum(paint, line)
    paint *= ~crossing
    if street.parking > 0:
        inner = street.half_road - street.parking
        bays = _dashes(z, 6.0, LINE_WIDTH, along) * (np.abs(s) > inner) * ~crossing
        paint = np.maximum(paint, bays)
    if street.zebra is not None:
        on_zebra = (z > street.zebra) & (z < street.zebra + 3.0)
        stripes = _dashes(s, 1.0, 0.5, across) * (np.abs(s) < street.half_road - 0.3)
        paint = np.where(on_zebra, stripes, paint)
    worn = np.clip(0.82 + 0.12 * stains + 0.1 * grain, 0.3, 1)
    white = np.array([222, 222, 214], np.float32)
    return colour + (white - colour) * (paint * worn)[..., None]


def _band(
    value: np.ndarray, middle: float, width: float, pixel: np.ndarray
) -> np.ndarray:
    """Share (0 to 1) of each pixel that a line of this width covers."""
    inside = width / 2 - np.abs(value - middle)
    share = np.clip(inside / pixel + 0.5, 0, 1)
    return (share * np.minimum(1, width / pixel)).astype(np.float32)


def _dashes(
    value: np.ndarray, period: float, length: float, pixel: np.ndarray
) -> np.ndarray:
    """Share of each pixel that dashes of this length cover."""
    share = np.clip(
        (length / 2 - np.abs(repeat(value, period) - period / 2)) / pixel + 0.5, 0, 1
    )
    # Where a pixel spans more than a period only the mean remains.
    blur = np.clip(pixel / period, 0, 1)
    return (share * (1 - blur) + length / period * blur).astype(np.float32)


def _shadow_map(
    canvas: Canvas, camera: Camera, shadows: list[tuple[np.ndarray, float]]
) -> np.ndarray:
    """Share of the light, (H, W), that all shadows together take."""
    dark = np.zeros(canvas.labels.shape, np.uint8)
    # The deepest last: where shadows meet, they do not add up.
    for polygon, strength in sorted(shadows, key=lambda shadow: shadow[1]):
        flat = np.stack([polygon[:, 0], np.zeros(len(polygon)), polygon[:, 1]], axis=1)
        corners = camera.polygon(flat)
        if corners is None:
            continue
        points = [np.round(corners).astype(np.int32)]
        cv2.fillPoly(dark, points, round(255 * strength))
    return cv2.GaussianBlur(dark, (7, 7), 0).astype(np.float32) / 255
