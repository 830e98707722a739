"""Cars: a side profile, drawn out to a body with windows, wheels and lights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streets.street.camera import NEAR, Camera
from streets.street.canvas import Canvas
from streets.street.labels import Label
from streets.street.light import Light, Rgb

_PAINTS: tuple[Rgb, ...] = (
    (188, 34, 36),
    (34, 70, 140),
    (226, 226, 224),
    (40, 42, 46),
    (150, 154, 158),
    (28, 100, 90),
    (226, 170, 40),
    (96, 28, 46),
    (84, 124, 160),
)


@dataclass(frozen=True)
class Profile:
    """Outline of a car from the side.

    Args:
        outline: (along, up) in metres, from the rear bumper over the roof to
            the front bumper; along is 0 in the middle and grows forwards.
        glass: Indices of the outline's edges that are windscreens.
        waist: Height at which the windows begin.
        half_width: At the waist and below.
    """

    outline: tuple[tuple[float, float], ...]
    glass: tuple[int, int]
    waist: float
    half_width: float

    @property
    def top(self) -> float:
        """Height of the roof."""
        return max(up for _, up in self.outline)

    def half_width_at(self, up: float) -> float:
        """Half the width at a height: cabins lean inwards."""
        lean = max(0.0, up - self.waist) / (self.top - self.waist)
        return self.half_width * (1 - 0.2 * lean)


PROFILES: dict[str, Profile] = {
    'hatchback': Profile(
        outline=(
            (-1.95, 0.28),
            (-2.0, 0.62),
            (-1.92, 0.95),
            (-1.5, 1.44),
            (0.1, 1.48),
            (0.98, 0.98),
            (1.85, 0.8),
            (2.0, 0.6),
            (1.98, 0.28),
        ),
        glass=(2, 4),
        waist=0.92,
        half_width=0.87,
    ),
    'saloon': Profile(
        outline=(
            (-2.25, 0.28),
            (-2.3, 0.65),
            (-2.2, 0.95),
            (-1.55, 1.0),
            (-0.95, 1.4),
            (0.3, 1.42),
            (1.1, 0.96),
            (2.1, 0.8),
            (2.3, 0.6),
            (2.25, 0.28),
        ),
        glass=(3, 5),
        waist=0.93,
        half_width=0.9,
    ),
    'van': Profile(
        outline=(
            (-2.3, 0.3),
            (-2.35, 1.0),
            (-2.25, 1.12),
            (-2.1, 1.95),
            (1.1, 1.98),
            (1.75, 1.15),
            (2.25, 0.95),
            (2.35, 0.65),
            (2.3, 0.3),
        ),
        glass=(2, 4),
        waist=1.08,
        half_width=0.95,
    ),
    'offroader': Profile(
        outline=(
            (-2.15, 0.38),
            (-2.2, 0.8),
            (-2.15, 1.08),
            (-1.9, 1.68),
            (0.35, 1.72),
            (1.0, 1.12),
            (1.95, 1.0),
            (2.15, 0.75),
            (2.12, 0.38),
        ),
        glass=(2, 4),
        waist=1.06,
        half_width=0.94,
    ),
}


@dataclass(frozen=True)
class Car:
    """A car on the street.

    Args:
        x: World X of its middle, in metres.
        z: World Z of its middle.
        heading: Direction in radians to the right of world Z.
        kind: A key of :data:`PROFILES`.
        paint: RGB.
    """

    x: float
    z: float
    heading: float
    kind: str
    paint: Rgb

    def world(self, local: np.ndarray) -> np.ndarray:
        """(along, up, right) of the car, (N, 3), to world points (N, 3)."""
        sin, cos = np.sin(self.heading), np.cos(self.heading)
        return np.stack(
            [
                self.x + local[:, 0] * sin + local[:, 2] * cos,
                local[:, 1],
                self.z + local[:, 0] * cos - local[:, 2] * sin,
            ],
            axis=1,
        )

    def footprint(self, margin: float = 0.0) -> np.ndarray:
        """World (X, Z) of its corners on the ground, (4, 2)."""
        profile = PROFILES[self.kind]
        length = profile.outline[-2][0] + margin
        width = profile.half_width + margin
        local = np.array(
            [
                [-length, 0, -width],
                [length, 0, -width],
                [length, 0, width],
                [-length, 0, width],
            ]
        )
        return self.world(local)[:, [0, 2]]


def random_car(x: float, z: float, heading: float, rng: np.random.Generator) -> Car:
    """Draw a car of random kind and colour at a place."""
    kind = str(rng.choice(list(PROFILES), p=[0.4, 0.3, 0.12, 0.18]))
    paint = np.array(_PAINTS[int(rng.integers(len(_PAINTS)))])
    paint = paint + rng.uniform(-10, 10, 3)
    return Car(x=x, z=z, heading=heading, kind=kind, paint=tuple(paint))


def paint_car(canvas: Canvas, camera: Camera, light: Light, car: Car) -> None:
    """Paint those sides of a car that face the camera."""
    corners = car.footprint(0.1)
    if min(camera.depth(*corner) for corner in corners) < NEAR + 0.2:
        return
    _CarPainter(canvas, camera, light, car).paint()


class _CarPainter:
    """Paints one car; keeps what all its parts have in common."""

    def __init__(self, canvas: Canvas, camera: Camera, light: Light, car: Car) -> None:
        self.canvas = canvas
        self.camera = camera
        self.light = light
        self.car = car
        self.profile = PROFILES[car.kind]
        self.depth = camera.depth(car.x, car.z)
        eye = np.array(camera.eye) - (car.x, 0, car.z)
        sin, cos = np.sin(car.heading), np.cos(car.heading)
        # The eye as the car sees it: (along, up, right).
        self.eye = np.array(
            [
                eye[0] * sin + eye[2] * cos,
                eye[1],
                eye[0] * cos - eye[2] * sin,
            ]
        )

    def paint(self) -> None:
        """Paint sides first, since the strips across the car overlap them."""
        for side in (-1, 1):
            if self.eye[2] * side > self.profile.half_width:
                self._side(side)
        self._strips()

    def _fill(
        self,
        local: np.ndarray,
        colour: Rgb | np.ndarray,
        normal: tuple[float, float, float] | None,
    ) -> None:
        """Fill a polygon (N, 3) of the car; without a normal it shines itself."""
        if normal is None:
            tone = self.light.haze(np.array(colour, np.float32), self.depth)
        else:
            along, up, right = normal
            sin, cos = np.sin(self.car.heading), np.cos(self.car.heading)
            world = (along * sin + right * cos, up, along * cos - right * sin)
            tone = self.light.shade(colour, world, self.depth)
        self.canvas.fill(self.camera.polygon(self.car.world(local)), tone, Label.CAR)

    def _flat(self, outline: np.ndarray, side: int, lift: float = 0.0) -> np.ndarray:
        """Put an (along, up) outline onto the car's side."""
        right = [self.profile.half_width_at(up) + lift for _, up in outline]
        return np.column_stack([outline, side * np.array(right)])

    def _side(self, side: int) -> None:
        profile = self.profile
        outline = np.array(profile.outline)
        normal = (0.0, 0.25, float(side))
        self._fill(self._flat(outline, side), self.car.paint, normal)
        low = outline[[0, 1, -2, -1]].copy()
        low[[1, 2], 1] = outline[0, 1] + 0.1
        self._fill(self._flat(low, side), (38, 38, 40), normal)
        crease = np.array(
            [
                [outline[1, 0] + 0.1, profile.waist - 0.3],
                [outline[-2, 0] - 0.2, profile.waist - 0.34],
                [outline[-2, 0] - 0.2, profile.waist - 0.38],
                [outline[1, 0] + 0.1, profile.waist - 0.34],
            ]
        )
        self._fill(self._flat(crease, side), np.array(self.car.paint) * 0.7, normal)
        self._side_windows(side)
        for along in (-0.62 * outline[-2, 0], 0.64 * outline[-2, 0]):
            self._wheel(along, side)

    def _side_windows(self, side: int) -> None:
        profile = self.profile
        outline = np.array(profile.outline)
        rear, front = profile.glass
        cabin = outline[[rear, rear + 1, front, front + 1]]
        middle = cabin.mean(axis=0)
        cabin = middle + (cabin - middle) * (0.86, 0.72)
        cabin[[0, 3], 1] = profile.waist + 0.06
        if self.car.kind == 'van':
            # Vans carry parcels: only the driver has windows.
            cabin[0, 0] = cabin[1, 0] = cabin[2, 0] - 0.75
        glass = self._glass()
        normal = (0.0, 0.35, float(side))
        self._fill(self._flat(cabin, side, 0.005), glass, normal)
        pillar = (cabin[1, 0] + cabin[2, 0]) / 2
        if self.car.kind != 'van':
            post = np.array(
                [
                    [pillar - 0.05, cabin[0, 1]],
                    [pillar - 0.05, cabin[1, 1]],
                    [pillar + 0.03, cabin[1, 1]],
                    [pillar + 0.03, cabin[0, 1]],
                ]
            )
            self._fill(
                self._flat(post, side, 0.006), np.array(self.car.paint) * 0.8, normal
            )

    def _glass(self) -> np.ndarray:
        """Panes are dark, with some of the sky in them."""
        return 22 + 0.22 * np.array(self.light.horizon)

    def _wheel(self, along: float, side: int) -> None:
        radius = 0.34 if self.car.kind != 'offroader' else 0.39
        angles = np.linspace(0, 2 * np.pi, 18, endpoint=False)
        circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        normal = (0.0, 0.2, float(side))
        middle = np.array([along, radius])
        arch = middle + circle * (radius + 0.06)
        arch[:, 1] = np.maximum(arch[:, 1], 0.2)
        parts = (
            (arch, (22, 22, 24), 0.002),
            (middle + circle * radius, (34, 34, 36), 0.01),
            (middle + circle * radius * 0.62, (168, 170, 174), 0.012),
            (middle + circle * radius * 0.2, (70, 70, 74), 0.014),
        )
        for outline, colour, lift in parts:
            self._fill(self._flat(outline, side, lift), colour, normal)

    def _strips(self) -> None:
        """Paint what lies across the car: bumpers, screens, roof and bonnet."""
        outline = np.array(self.profile.outline)
        visible = []
        for index, (start, end) in enumerate(
            zip(outline[:-1], outline[1:], strict=True)
        ):
            normal = np.array([-(end - start)[1], (end - start)[0]])
            normal /= np.linalg.norm(normal)
            to_eye = self.eye[:2] - (start + end) / 2
            if to_eye @ normal > 0:
                visible.append((float(np.linalg.norm(to_eye)), index, normal))
        for _, index, normal in sorted(visible, reverse=True):
            start, end = outline[index], outline[index + 1]
            facing = (float(normal[0]), float(normal[1]), 0.0)
            self._fill(self._across(start, end, -1, 1), self.car.paint, facing)
            if index in self.profile.glass:
                inner = start + (end - start) * 0.1, start + (end - start) * 0.92
                self._fill(self._across(*inner, -0.88, 0.88), self._glass(), facing)
        rear = visible and self.eye[0] < outline[1, 0]
        front = visible and self.eye[0] > outline[-2, 0]
        if rear:
            self._rear(outline)
        if front:
            self._front(outline)

    def _across(
        self, start: np.ndarray, end: np.ndarray, left: float, right: float
    ) -> np.ndarray:
        """A strip from one outline point to another; sides are shares of the width."""
        widths = [self.profile.half_width_at(up) for up in (start[1], end[1])]
        return np.array(
            [
                [*start, left * widths[0]],
                [*end, left * widths[1]],
                [*end, right * widths[1]],
                [*start, right * widths[0]],
            ]
        )

    def _end_box(
        self,
        along: float,
        bottom: float,
        top: float,
        left: float,
        right: float,
        colour: Rgb | np.ndarray,
        shines: bool = False,
    ) -> None:
        """A rectangle on the front or rear end."""
        start, end = np.array([along, bottom]), np.array([along, top])
        normal = None if shines else (float(np.sign(along)), 0.2, 0.0)
        self._fill(self._across(start, end, left, right), colour, normal)

    def _rear(self, outline: np.ndarray) -> None:
        along = outline[1, 0] - 0.01
        waist = self.profile.waist
        lamps_on = self.light.lamps_on
        red = (255, 52, 38) if lamps_on else (176, 24, 26)
        self._end_box(along, outline[0, 1], outline[0, 1] + 0.14, -1, 1, (40,) * 3)
        for left, right in ((-0.97, -0.68), (0.68, 0.97)):
            self._end_box(along, waist - 0.28, waist - 0.06, left, right, red, lamps_on)
        plate = (226, 224, 206)
        self._end_box(along, waist - 0.36, waist - 0.24, -0.28, 0.28, plate)

    def _front(self, outline: np.ndarray) -> None:
        along = outline[-2, 0] + 0.01
        up = outline[-2, 1]
        lamps_on = self.light.lamps_on
        lamp = (255, 248, 220) if lamps_on else (236, 238, 240)
        self._end_box(along, outline[0, 1], outline[0, 1] + 0.1, -1, 1, (40,) * 3)
        self._end_box(along, up - 0.18, up - 0.03, -0.5, 0.5, (30, 30, 32))
        for left, right in ((-0.96, -0.6), (0.6, 0.96)):
            self._end_box(along, up - 0.17, up - 0.01, left, right, lamp, lamps_on)
        self._end_box(along, up - 0.3, up - 0.2, -0.28, 0.28, (226, 224, 206))
