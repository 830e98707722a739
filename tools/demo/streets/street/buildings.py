"""Buildings: facades with windows, doors and shops, side walls and roofs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from streets.street.camera import NEAR, Camera
from streets.street.canvas import Canvas, as_rgb
from streets.street.labels import Label
from streets.street.light import Light, Rgb
from streets.street.noise import TILE, fractal_tile

_WALLS: dict[str, tuple[Rgb, ...]] = {
    'plaster': (
        (226, 208, 172),
        (214, 178, 150),
        (222, 216, 204),
        (190, 204, 206),
        (224, 190, 128),
        (196, 206, 178),
        (206, 158, 140),
    ),
    'brick': ((158, 88, 70), (140, 76, 62), (176, 112, 84), (128, 84, 76)),
    'concrete': ((164, 162, 158), (182, 178, 170), (148, 152, 158)),
    'glass': ((96, 112, 124), (112, 122, 126), (82, 98, 108)),
}
_ROOFS: tuple[Rgb, ...] = ((150, 78, 58), (92, 88, 92), (122, 70, 56), (78, 82, 90))
_AWNINGS: tuple[Rgb, ...] = (
    (176, 48, 44),
    (44, 96, 86),
    (40, 66, 120),
    (206, 140, 44),
    (96, 44, 84),
)

# Up to so many pixels per metre, windows are drawn without bars.
_PLAIN = 9
_FRAME = 0.1
_WINDOW_KINDS = 5


@dataclass(frozen=True)
class Building:
    """A block with one facade on the street.

    Args:
        corners: World (X, Z) of the facade's ends, the nearer one first.
        outward: Unit vector (X, Z) from the building to the street.
        depth: Extent away from the street, in metres.
        height: Up to the eaves, in metres.
        roof: Height of a pitched roof above the eaves, 0 for a flat one.
        style: One of plaster, brick, concrete and glass.
    """

    corners: tuple[tuple[float, float], tuple[float, float]]
    outward: tuple[float, float]
    depth: float
    height: float
    roof: float
    style: str

    def footprint(self) -> np.ndarray:
        """World (X, Z) of the four corners on the ground, (4, 2)."""
        near, far = np.array(self.corners)
        back = np.array(self.outward) * self.depth
        return np.array([near, far, far - back, near - back])


def paint_building(
    canvas: Canvas,
    camera: Camera,
    light: Light,
    building: Building,
    rng: np.random.Generator,
) -> None:
    """Paint those sides of a building that face the camera."""
    wall = np.array(_pick(rng, _WALLS[building.style])) + rng.uniform(-10, 10, 3)
    roof = np.array(_pick(rng, _ROOFS)) + rng.uniform(-8, 8, 3)
    near, far, far_back, near_back = building.footprint()
    depth = min(camera.depth(*corner) for corner in building.corners)
    facade = Facade(building, wall, camera.focal / max(depth, 1.0), rng)
    eye = np.array([camera.eye[0], camera.eye[2]])
    ends = (
        (near_back, near, (near - far) / np.linalg.norm(near - far)),
        (far, far_back, (far - near) / np.linalg.norm(far - near)),
    )
    for start, end, normal in ends:
        if (eye - start) @ normal > 0:
            _paint_wall(
                canvas, camera, light, building, facade.side, start, end, normal
            )
            if building.roof > 0:
                _paint_gable(canvas, camera, light, building, wall, start, end, normal)
    if (eye - near) @ building.outward > 0:
        _paint_wall(
            canvas,
            camera,
            light,
            building,
            facade.front,
            near,
            far,
            np.array(building.outward),
        )
        if building.roof > 0:
            _paint_roof(canvas, camera, light, building, roof)


def _paint_wall(
    canvas: Canvas,
    camera: Camera,
    light: Light,
    building: Building,
    draw: Callable[[Light], np.ndarray],
    start: np.ndarray,
    end: np.ndarray,
    normal: np.ndarray,
) -> None:
    """Paint one wall, whose texture runs from ``start`` to ``end``."""
    depths = np.array([camera.depth(*start), camera.depth(*end)])
    if depths.max() <= NEAR:
        return
    # Walls that pass the camera are cut there, and so are their textures.
    shares = [0.0, 1.0]
    for index in (0, 1):
        if depths[index] < NEAR:
            shares[index] = (NEAR - depths[0]) / (depths[1] - depths[0])
    left, right = (start + share * (end - start) for share in shares)
    corners = camera.to_pixels(
        camera.view(
            np.array(
                [
                    [left[0], building.height, left[1]],
                    [right[0], building.height, right[1]],
                    [right[0], 0, right[1]],
                    [left[0], 0, left[1]],
                ]
            )
        )
    )
    if corners[:, 0].max() <= 0 or corners[:, 0].min() >= camera.width:
        return
    texture = draw(light)
    columns = [round(share * texture.shape[1]) for share in shares]
    texture = texture[:, columns[0] : columns[1]]
    if texture.shape[1] < 2:
        return
    if corners[0, 0] > corners[1, 0]:
        texture, corners = texture[:, ::-1], corners[[1, 0, 3, 2]]
    texture = _shrink(texture, corners)
    depth = float(np.clip(depths, NEAR, None).mean())
    factor = light.lit((normal[0], 0.0, normal[1]))
    left_over = float(np.exp(-depth / light.sight))
    # Light and haze change every channel by itself, hence a table for each.
    tones = np.arange(256)[:, None] * (factor * left_over)
    tones += np.array(light.horizon) * (1 - left_over)
    canvas.paste(cv2.LUT(texture, _table(tones)), corners, Label.BUILDING)


def _shrink(texture: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Bring a texture near the size at which it is seen, so it does not flicker."""
    seen_height = max(corners[3, 1] - corners[0, 1], corners[2, 1] - corners[1, 1])
    seen_width = corners[1, 0] - corners[0, 0]
    height, width = texture.shape[:2]
    size = (
        int(np.clip(seen_width * 1.5, 2, width)),
        int(np.clip(seen_height, 2, height)),
    )
    if size == (width, height):
        return texture
    return cv2.resize(np.ascontiguousarray(texture), size, interpolation=cv2.INTER_AREA)


def _paint_roof(
    canvas: Canvas, camera: Camera, light: Light, building: Building, colour: np.ndarray
) -> None:
    """Paint the slope of a pitched roof that leans towards the street."""
    near, far, far_back, near_back = building.footprint()
    eaves, ridge = building.height, building.height + building.roof
    overhang = np.array(building.outward) * 0.4
    near, far = near + overhang, far + overhang
    near_ridge, far_ridge = (near + near_back) / 2, (far + far_back) / 2
    corners = camera.polygon(
        np.array(
            [
                [near[0], eaves, near[1]],
                [near_ridge[0], ridge, near_ridge[1]],
                [far_ridge[0], ridge, far_ridge[1]],
                [far[0], eaves, far[1]],
            ]
        )
    )
    slope = np.array([building.outward[0], building.depth / 2, building.outward[1]])
    slope[[0, 2]] *= building.roof
    slope /= np.linalg.norm(slope)
    depth = max(1.0, camera.depth(*((near + far) / 2)))
    canvas.fill(corners, light.shade(colour, tuple(slope), depth), Label.BUILDING)


def _paint_gable(
    canvas: Canvas,
    camera: Camera,
    light: Light,
    building: Building,
    colour: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    normal: np.ndarray,
) -> None:
    """Paint the triangle between a side wall and a pitched roof."""
    middle = (start + end) / 2
    top = building.height + building.roof
    corners = camera.polygon(
        np.array(
            [
                [start[0], building.height, start[1]],
                [middle[0], top, middle[1]],
                [end[0], building.height, end[1]],
            ]
        )
    )
    shade = light.shade(
        colour, (normal[0], 0.0, normal[1]), max(1.0, camera.depth(*middle))
    )
    canvas.fill(corners, shade, Label.BUILDING)


class Facade:
    """Textures of one building, all in the same style.

    Args:
        building: Whose walls they are.
        wall: RGB of the wall.
        metre: Pixels that a metre takes where the building is nearest.
        rng: Source of the details.
    """

    def __init__(
        self,
        building: Building,
        wall: np.ndarray,
        metre: float,
        rng: np.random.Generator,
    ) -> None:
        self.scale = float(np.clip(1.2 * metre, 6, 20))
        self.building = building
        self.wall = wall
        self.rng = rng
        glassy = building.style == 'glass'
        self.storey = rng.uniform(2.9, 3.5)
        self.bay = rng.uniform(1.5, 2.0) if glassy else rng.uniform(2.1, 3.2)
        self.window = (
            (self.bay * 0.86, self.storey * 0.74)
            if glassy
            else (rng.uniform(0.95, 1.35), rng.uniform(1.35, 1.8))
        )
        frames = ((236, 234, 228), (238, 238, 240), (70, 62, 58), (110, 88, 70))
        self.frame = (88, 96, 104) if glassy else _pick(rng, frames)
        self.bands = not glassy and rng.random() < 0.5
        self.balconies = building.style != 'glass' and rng.random() < 0.22
        self.shops = rng.random() < 0.55
        self.panes: dict[tuple[float, float], list[np.ndarray]] = {}

    def front(self, light: Light) -> np.ndarray:
        """Draw the wall on the street, (h, w, 3) uint8, as if in white light."""
        near, far = np.array(self.building.corners)
        width = float(np.linalg.norm(far - near))
        texture = self._blank(width)
        self._windows(texture, width, light, share=1.0)
        self._ground_floor(texture, width, light)
        cornice = self._rows(self.building.height, self.building.height - 0.45)
        texture[cornice] = np.clip(texture[cornice] * 1.12 + 6, 0, 255)
        texture[cornice.stop : cornice.stop + 3] //= 2
        return texture

    def side(self, light: Light) -> np.ndarray:
        """Draw a wall at an end, which has few windows or none."""
        texture = self._blank(self.building.depth)
        share = float(self.rng.choice([0.0, 0.35, 0.7]))
        self._windows(texture, self.building.depth, light, share=share)
        return texture

    def _rows(self, top: float, bottom: float) -> slice:
        """Rows of the texture between two heights above the ground."""
        height = self.building.height
        return slice(
            max(0, round((height - top) * self.scale)),
            max(0, round((height - bottom) * self.scale)),
        )

    def _blank(self, width: float) -> np.ndarray:
        """Wall without openings: colour, stains, bricks and a dark foot."""
        shape = (
            max(4, round(self.building.height * self.scale)),
            max(4, round(width * self.scale)),
        )
        start = self.rng.integers(0, TILE, 2)
        rows = (np.arange(shape[0]) + start[0]) % TILE
        columns = (np.arange(shape[1]) + start[1]) % TILE
        bright = 1 + 0.035 * fractal_tile(1.3, 31)[np.ix_(rows, columns)]
        if self.building.style == 'brick' and self.scale > 12:
            course = 0.06 * fractal_tile(0.0, 32)[np.ix_(rows // 3, columns // 7)]
            course[np.arange(shape[0]) % 3 == 0] += 0.1
            bright += course
        foot = np.exp(-np.arange(shape[0])[::-1] / (0.8 * self.scale))
        bright *= (1 - 0.22 * foot)[:, None]
        # 256 tones of the wall are enough, and come quickly from a table.
        tones = np.clip((bright - 0.5) * 255, 0, 255).astype(np.uint8)
        table = _table((np.arange(256)[:, None] / 255 + 0.5) * self.wall)
        texture = cv2.LUT(cv2.merge([tones] * 3), table)
        if self.bands:
            floors = int((self.building.height - 1) / self.storey)
            for floor in range(1, floors + 1):
                band = self._rows(floor * self.storey + 0.12, floor * self.storey)
                texture[band] = np.clip(texture[band] * 1.1 + 8, 0, 255)
        return texture

    def _windows(
        self, texture: np.ndarray, width: float, light: Light, *, share: float
    ) -> None:
        """Draw the upper floors' windows, a ``share`` of the places being used."""
        bays = max(1, int((width - 0.6) / self.bay))
        margin = (width - bays * self.bay) / 2
        floors = int((self.building.height - 0.7) / self.storey)
        used = self.rng.random(bays) < share
        for floor in range(1, floors):
            sill = floor * self.storey + (self.storey - self.window[1]) * 0.55
            for bay in np.flatnonzero(used):
                middle = margin + (bay + 0.5) * self.bay
                self._window(texture, middle, sill, *self.window, light)
                if self.balconies and bay % 2 == 0:
                    self._box(
                        texture, middle, floor * self.storey + 0.1, 1.9, 0.95, (70,) * 3
                    )
                    self._box(
                        texture,
                        middle,
                        floor * self.storey + 0.2,
                        1.75,
                        0.75,
                        self.wall * 0.72,
                    )

    def _ground_floor(self, texture: np.ndarray, width: float, light: Light) -> None:
        """Draw the doors, and the shops or windows beside them."""
        pane = self.bay * 2 if self.shops else self.bay
        count = max(1, int((width - 0.6) / pane))
        margin = (width - count * pane) / 2
        door = int(self.rng.integers(0, count))
        awning = np.array(_pick(self.rng, _AWNINGS)) + self.rng.uniform(-12, 12, 3)
        if self.shops:
            self._box(texture, width / 2, 0, width, self.storey, self.wall * 0.62)
        for index in range(count):
            middle = margin + (index + 0.5) * pane
            if index == door:
                self._box(texture, middle, 0, 1.3, 2.35, self.frame)
                leaf = np.array(_pick(self.rng, _AWNINGS)) * 0.7
                self._box(texture, middle, 0, 1.06, 2.2, leaf)
            elif self.shops:
                self._window(texture, middle, 0.45, pane * 0.84, 2.0, light)
                if self.rng.random() < 0.6:
                    self._awning(texture, middle, pane * 0.9, awning)
            elif self.rng.random() < 0.85:
                self._window(texture, middle, 1.0, *self.window, light)

    def _awning(
        self, texture: np.ndarray, middle: float, width: float, colour: np.ndarray
    ) -> None:
        """Draw a striped awning above a shop window."""
        stripes = 7
        for stripe in range(stripes):
            at = middle + (stripe + 0.5 - stripes / 2) * width / stripes
            tone = colour if stripe % 2 == 0 else np.array([232, 228, 218])
            self._box(texture, at, 2.05, width / stripes, 0.62, tone)
        self._box(texture, middle, 1.98, width, 0.08, colour * 0.5)

    def _window(
        self,
        texture: np.ndarray,
        middle: float,
        sill: float,
        width: float,
        height: float,
        light: Light,
    ) -> None:
        """Put in one of a few windows of this size, drawn when first needed."""
        key = (width, height)
        if key not in self.panes:
            self.panes[key] = [
                self._draw_window(width, height, light) for _ in range(_WINDOW_KINDS)
            ]
        pane = self.panes[key][int(self.rng.integers(_WINDOW_KINDS))]
        left = round(middle * self.scale - pane.shape[1] / 2)
        low = round((self.building.height - sill + _FRAME) * self.scale)
        top = low - pane.shape[0]
        if left >= 0 and top >= 0:
            room = texture[top:low, left : left + pane.shape[1]]
            room[:] = pane[: room.shape[0], : room.shape[1]]

    def _draw_window(self, width: float, height: float, light: Light) -> np.ndarray:
        """Draw a window whose pane mirrors the sky, or is lit from inside."""
        shape = (
            max(2, round((height + 2 * _FRAME) * self.scale)),
            max(2, round((width + 2 * _FRAME) * self.scale)),
        )
        window = np.empty((*shape, 3), np.uint8)
        window[:] = as_rgb(self.frame)
        edge = max(1, round(_FRAME * self.scale))
        glass = window[edge : shape[0] - edge, edge : shape[1] - edge]
        if light.lamps_on and self.rng.random() < 0.42:
            # Bright enough to stay so when the whole wall is darkened.
            glass[:] = as_rgb(np.array([255, 206, 128]) * self.rng.uniform(1.2, 1.7))
        else:
            sky = np.array(light.zenith) * 0.35 + np.array(light.horizon) * 0.12
            dark = sky * self.rng.uniform(0.55, 1.15) + 10
            glass[:] = as_rgb(dark)
            glass[: glass.shape[0] * 45 // 100] = as_rgb(dark * 1.3)
            if self.rng.random() < 0.35:
                curtain = max(1, round(0.3 * glass.shape[1]))
                side = (
                    slice(None, curtain)
                    if self.rng.random() < 0.5
                    else slice(-curtain, None)
                )
                glass[:, side] = (206, 200, 190)
        if self.scale > _PLAIN:
            bar = max(1, round(0.07 * self.scale))
            glass[:, (glass.shape[1] - bar) // 2 :][:, :bar] = as_rgb(self.frame)
            glass[round(0.35 * glass.shape[0]) :][:bar] = as_rgb(self.frame)
        return window

    def _box(
        self,
        texture: np.ndarray,
        middle: float,
        bottom: float,
        width: float,
        height: float,
        colour: Rgb | np.ndarray,
    ) -> None:
        """Fill an upright rectangle; everything is in metres on the wall."""
        left = round((middle - width / 2) * self.scale)
        right = round((middle + width / 2) * self.scale) - 1
        top = round((self.building.height - bottom - height) * self.scale)
        low = round((self.building.height - bottom) * self.scale) - 1
        cv2.rectangle(
            texture, (left, top), (max(left, right), max(top, low)), as_rgb(colour), -1
        )


def _table(tones: np.ndarray) -> np.ndarray:
    """Round tones (256, 3) to a table for ``cv2.LUT``."""
    return np.clip(tones, 0, 255).astype(np.uint8)[None]


def _pick(rng: np.random.Generator, choices: tuple[Rgb, ...]) -> Rgb:
    return choices[int(rng.integers(len(choices)))]
