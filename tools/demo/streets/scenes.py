"""Street scenes made from a seed: a picture and the class of its every pixel.

A scene is laid out first (road, buildings, trees, cars, people, all in metres),
lit by one of three moods, and then painted from far to near. It is painted at
twice its size and reduced, which smooths the edges.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from streets.street.buildings import Building, paint_building
from streets.street.camera import Camera
from streets.street.canvas import Canvas
from streets.street.cars import PROFILES, Car, paint_car, random_car
from streets.street.furniture import Pole, paint_pole
from streets.street.ground import Street, paint_ground
from streets.street.light import Light, random_light
from streets.street.people import Person, paint_person, random_person
from streets.street.sky import paint_sky
from streets.street.trees import Tree, paint_tree, random_tree

#: Width and height of a scene in pixels.
SCENE_SIZE = (320, 224)

_OVERSAMPLING = 2
_FAR = 110.0


@dataclass(frozen=True)
class Scene:
    """One scene.

    Args:
        image: (H, W, 3) uint8, RGB.
        labels: (H, W) uint8, values of
            :class:`~streets.street.labels.Label`.
        mood: ``'day'``, ``'dusk'`` or ``'overcast'``.
    """

    image: np.ndarray
    labels: np.ndarray
    mood: str


def make_scene(
    seed: int | tuple[int, ...], *, size: tuple[int, int] = SCENE_SIZE
) -> Scene:
    """Make one street scene.

    Args:
        seed: Equal seeds give equal scenes, on the same version of OpenCV.
        size: Width and height in pixels, each at least 64.

    Returns:
        The scene.

    Raises:
        ValueError: The size is too small to hold a street.
    """
    if min(size) < 64:
        raise ValueError(f'size is {size}: width and height must be at least 64')
    rng = np.random.default_rng(seed)
    width, height = (_OVERSAMPLING * side for side in size)
    light = random_light(rng)
    street = _random_street(rng)
    camera = _random_camera(width, height, street, rng)
    plan = _random_plan(street, camera, rng)

    canvas = Canvas(width=width, height=height)
    paint_sky(canvas, camera, light, rng)
    paint_ground(canvas, camera, light, street, plan.shadows(light), rng)
    for paint in plan.far_to_near(camera):
        paint(canvas=canvas, camera=camera, light=light, rng=rng)
    return Scene(
        image=_develop(canvas.image, size, light, rng),
        labels=np.ascontiguousarray(canvas.labels[1::_OVERSAMPLING, 1::_OVERSAMPLING]),
        mood=light.mood,
    )


def _random_street(rng: np.random.Generator) -> Street:
    lanes = int(rng.choice([2, 3, 4], p=[0.7, 0.15, 0.15]))
    parking = 2.2 if rng.random() < 0.6 else 0.0
    crossroads = None
    if rng.random() < 0.35:
        start = rng.uniform(11, 26)
        crossroads = (start, start + rng.uniform(7, 10))
    zebra = None
    if crossroads is not None and rng.random() < 0.7:
        zebra = crossroads[0] - 4.2
    elif crossroads is None and rng.random() < 0.25:
        zebra = rng.uniform(6, 12)
    return Street(
        half_road=lanes * rng.uniform(2.9, 3.4) / 2 + parking,
        verge=rng.uniform(1.7, 2.8) if rng.random() < 0.45 else 0.0,
        pavement=rng.uniform(2.2, 4.4),
        bend=rng.normal(0, 0.0011),
        lanes=lanes,
        parking=parking,
        crossroads=crossroads,
        zebra=zebra,
    )


def _random_camera(
    width: int, height: int, street: Street, rng: np.random.Generator
) -> Camera:
    """Stand on the road or on a pavement, and look along the street."""
    if rng.random() < 0.6:
        s = rng.uniform(-0.7, 0.7) * (street.half_road - street.parking)
    else:
        side = rng.choice([-1, 1])
        s = side * (street.edge - rng.uniform(0.3, 0.8) * street.pavement)
    return Camera(
        width=width,
        height=height,
        focal=width * rng.uniform(0.72, 0.98),
        horizon=height * rng.uniform(0.42, 0.56),
        eye=(float(s), rng.uniform(1.55, 2.7), 0.0),
        # Those who stand at the side look across the street.
        yaw=float(rng.normal(0, 0.07) - 0.028 * s + 12 * street.bend),
    )


@dataclass
class _Plan:
    """What stands along a street."""

    skyline: list[Building]
    buildings: list[Building]
    gardens: list[Tree]
    trees: list[Tree]
    cars: list[Car]
    people: list[Person]
    poles: list[Pole]

    def far_to_near(self, camera: Camera) -> list[Callable[..., None]]:
        """Order everything so that what is near covers what is far.

        Gardens are between and behind buildings; trees, cars, people and poles
        are on the street, in front of all of them.
        """

        def ordered(things: list) -> list[Callable[..., None]]:
            return [paint for _, paint in sorted(things, key=lambda pair: -pair[0])]

        behind = [
            (_building_depth(building, camera), partial(_paint_building, building))
            for building in self.buildings
        ]
        behind += _in_front(self.gardens, camera, 5.0, _paint_tree)
        street = _in_front(self.trees, camera, 4.5, _paint_tree)
        street += _in_front(self.cars, camera, 1.0, _paint_car)
        street += _in_front(self.people, camera, 3.2, _paint_person)
        street += _in_front(self.poles, camera, 2.5, _paint_pole)
        skyline = [
            (building.corners[0][1], partial(_paint_building, building))
            for building in self.skyline
        ]
        return ordered(skyline) + ordered(behind) + ordered(street)

    def shadows(self, light: Light) -> list[tuple[np.ndarray, float]]:
        """Shadows on the ground: polygons of (X, Z), and their strengths."""
        shadows = [(car.footprint(0.05), 0.72) for car in self.cars]
        shadows += [(_circle(person.x, person.z, 0.22), 0.4) for person in self.people]
        shadows += [(_circle(tree.x, tree.z, 0.3), 0.4) for tree in self.trees]
        if light.shadow == 0:
            return shadows
        # What a metre of height throws; long shadows of dusk end somewhere.
        throw = -np.array([light.sun[0], light.sun[2]]) / max(light.sun[1], 0.2)

        def cast(low: np.ndarray, bottom: float, high: np.ndarray, top: float) -> None:
            outline = np.concatenate([low + throw * bottom, high + throw * top])
            hull = cv2.convexHull(outline.astype(np.float32))[:, 0]
            shadows.append((hull, light.shadow))

        for building in self.buildings:
            base = building.footprint()
            cast(base, 0, base, building.height + building.roof / 2)
        for tree in self.gardens + self.trees:
            middle, half_width, half_height = tree.crown
            crown = _circle(tree.x, tree.z, half_width * 0.85)
            cast(crown, middle - half_height / 2, crown, middle + half_height / 2)
            trunk = _circle(tree.x, tree.z, 0.15)
            cast(trunk, 0, trunk, middle)
        for car in self.cars:
            cast(car.footprint(), 0, car.footprint(-0.25), PROFILES[car.kind].top)
        for person in self.people:
            body = _circle(person.x, person.z, 0.2)
            cast(body, 0, body, person.height)
        for pole in self.poles:
            foot = _circle(pole.x, pole.z, 0.07)
            cast(foot, 0, foot, 5.6 if pole.kind == 'lamp' else 2.6)
        return shadows


def _random_plan(street: Street, camera: Camera, rng: np.random.Generator) -> _Plan:
    plan = _Plan([], [], [], [], [], [], [])
    autumn = rng.random() < 0.2
    for side in (-1, 1):
        suburban = rng.random() < 0.5
        _line_side(plan, street, side, suburban, autumn, rng)
        _plant_trees(plan, street, side, autumn, rng)
    _close_view(plan, street, autumn, rng)
    _park_cars(plan, street, rng)
    _drive_cars(plan, street, camera, rng)
    _send_people(plan, street, rng)
    _put_poles(plan, street, rng)
    return plan


def _line_side(
    plan: _Plan,
    street: Street,
    side: int,
    suburban: bool,
    autumn: bool,
    rng: np.random.Generator,
) -> None:
    """Line one side of the street with buildings, gardens and gaps."""
    setback = rng.uniform(3.5, 8.0) if suburban else rng.choice([0.0, 0.0, 1.2])
    s = side * (street.edge + setback)
    z = rng.uniform(-14, -6)
    while z < _FAR:
        length = rng.uniform(8, 13) if suburban else rng.uniform(9, 20)
        if street.crosses(z, 1.5) or street.crosses(z + length, 1.5):
            z = street.crossroads[1] + street.pavement
            continue
        if street.crossroads and z < street.crossroads[0] < z + length:
            z = street.crossroads[1] + street.pavement
            continue
        if rng.random() < (0.22 if suburban else 0.12):
            # A gap: two or three trees where a house could stand.
            for _ in range(int(rng.integers(1, 4))):
                at = z + rng.uniform(2, length - 2)
                beyond = s + side * rng.uniform(1.5, 9)
                plan.gardens.append(random_tree(street.x(beyond, at), at, autumn, rng))
            z += length
            continue
        near = np.array([street.x(s, z), z])
        far = np.array([street.x(s, z + length), z + length])
        along = (far - near) / np.linalg.norm(far - near)
        pitched = suburban or rng.random() < 0.2
        plan.buildings.append(
            Building(
                corners=(tuple(near), tuple(far)),
                outward=(float(-side * along[1]), float(side * along[0])),
                depth=rng.uniform(8, 12),
                height=rng.uniform(5.4, 8.0) if suburban else rng.uniform(8, 24),
                roof=rng.uniform(2.2, 4.0) if pitched else 0.0,
                style=_random_style(suburban, rng),
            )
        )
        if suburban and rng.random() < 0.5:
            at = z + rng.uniform(1, length - 1)
            before = s - side * rng.uniform(1.2, max(1.4, setback - 0.8))
            if setback > 2.5:
                plan.trees.append(random_tree(street.x(before, at), at, autumn, rng))
        z += length + (rng.uniform(2, 5) if suburban else rng.choice([0, 0, 0, 2.5]))


def _random_style(suburban: bool, rng: np.random.Generator) -> str:
    if suburban:
        return str(rng.choice(['plaster', 'brick'], p=[0.7, 0.3]))
    return str(
        rng.choice(
            ['plaster', 'brick', 'concrete', 'glass'], p=[0.45, 0.25, 0.15, 0.15]
        )
    )


def _plant_trees(
    plan: _Plan, street: Street, side: int, autumn: bool, rng: np.random.Generator
) -> None:
    """Plant a row of trees along the kerb."""
    if rng.random() < 0.4:
        return
    spacing = rng.uniform(8, 15)
    s = side * (street.half_road + 1.0)
    for z in np.arange(rng.uniform(5, 12), 75, spacing):
        if street.crosses(z, 3) or rng.random() < 0.15:
            continue
        at = z + rng.uniform(-0.8, 0.8)
        plan.trees.append(random_tree(street.x(s, at), at, autumn, rng))


def _close_view(
    plan: _Plan, street: Street, autumn: bool, rng: np.random.Generator
) -> None:
    """Close the view at the street's end with houses and trees."""
    middle = street.x(0, _FAR)
    left = middle - 70.0
    while left < middle + 70:
        width = rng.uniform(12, 26)
        z = _FAR + 12 + rng.uniform(0, 6)
        if rng.random() < 0.75:
            plan.skyline.append(
                Building(
                    corners=((left, z), (left + width, z)),
                    outward=(0.0, -1.0),
                    depth=10.0,
                    height=rng.uniform(7, 26),
                    roof=0.0,
                    style=_random_style(False, rng),
                )
            )
        for _ in range(2):
            plan.gardens.append(
                random_tree(left + rng.uniform(0, width), _FAR + 4, autumn, rng)
            )
        left += width + rng.choice([0.0, 0.0, 6.0])


def _park_cars(plan: _Plan, street: Street, rng: np.random.Generator) -> None:
    if street.parking == 0:
        return
    for side in (-1, 1):
        density = rng.uniform(0.25, 0.75)
        s = side * (street.half_road - 1.12)
        # The bays that the road's markings show.
        for z in np.arange(3.0, 45, 6.0) + 3.0:
            if street.crosses(z, 4) or rng.random() > density:
                continue
            if street.zebra is not None and -3 < z - street.zebra < 6:
                continue
            at = z + rng.uniform(-0.3, 0.3)
            heading = street.heading(at) + (0 if side > 0 else np.pi)
            plan.cars.append(random_car(street.x(s, at), at, heading, rng))


def _drive_cars(
    plan: _Plan, street: Street, camera: Camera, rng: np.random.Generator
) -> None:
    inner = street.half_road - street.parking
    lane = 2 * inner / street.lanes
    for index in range(street.lanes):
        s = -inner + (index + 0.5) * lane
        onwards = s > 0.1
        z = rng.uniform(8, 24)
        while z < 50:
            blocked = street.crosses(z, 3) or (
                street.zebra is not None and -3 < z - street.zebra < 6
            )
            if not blocked and rng.random() < 0.75:
                heading = street.heading(z) + (0 if onwards else np.pi)
                shift = s + rng.uniform(-0.25, 0.25)
                plan.cars.append(random_car(street.x(shift, z), z, heading, rng))
            z += rng.uniform(9, 24)
    if street.crossroads is not None and rng.random() < 0.6:
        start, end = street.crossroads
        side = rng.choice([-1, 1])
        z = start + (0.28 if side > 0 else 0.72) * (end - start)
        x = street.x(rng.uniform(-6, 6), z)
        plan.cars.append(random_car(x, z, side * np.pi / 2, rng))


def _send_people(plan: _Plan, street: Street, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(3, 9))):
        side = rng.choice([-1, 1])
        s = side * (street.edge - rng.uniform(0.4, street.pavement - 0.4))
        z = rng.uniform(4.2, 10)
        if not street.crosses(z, 0.5):
            plan.people.append(random_person(street.x(s, z), z, rng))
    if street.zebra is not None and rng.random() < 0.7:
        for _ in range(int(rng.integers(1, 4))):
            s = rng.uniform(-1, 1) * street.half_road
            z = street.zebra + rng.uniform(0.5, 2.5)
            plan.people.append(random_person(street.x(s, z), z, rng))


def _put_poles(plan: _Plan, street: Street, rng: np.random.Generator) -> None:
    side = rng.choice([-1, 1])
    if rng.random() < 0.75:
        s = side * (street.half_road + 0.5)
        for z in np.arange(rng.uniform(7, 18), 80, 24):
            if not street.crosses(z, 1):
                plan.poles.append(
                    Pole(street.x(s, z), z, 'lamp', reach=-1.1 * float(side))
                )
    for _ in range(int(rng.integers(0, 3))):
        kind = str(rng.choice(['ban', 'warning', 'parking']))
        s = rng.choice([-1, 1]) * (street.half_road + 0.45)
        z = rng.uniform(6, 24)
        if not street.crosses(z, 1):
            plan.poles.append(Pole(street.x(s, z), z, kind))


def _in_front(
    things: list, camera: Camera, least: float, paint: Callable[..., None]
) -> list[tuple[float, Callable[..., None]]]:
    """Pair what is at least that many metres in front with its painter."""
    depths = [camera.depth(thing.x, thing.z) for thing in things]
    return [
        (depth, partial(paint, thing))
        for depth, thing in zip(depths, things, strict=True)
        if depth >= least
    ]


def _building_depth(building: Building, camera: Camera) -> float:
    return min(camera.depth(*corner) for corner in building.corners)


def _paint_building(thing: Building, *, canvas, camera, light, rng) -> None:
    paint_building(canvas, camera, light, thing, rng)


def _paint_tree(thing: Tree, *, canvas, camera, light, rng) -> None:
    paint_tree(canvas, camera, light, thing, rng)


def _paint_car(thing: Car, *, canvas, camera, light, rng) -> None:
    paint_car(canvas, camera, light, thing)


def _paint_person(thing: Person, *, canvas, camera, light, rng) -> None:
    paint_person(canvas, camera, light, thing)


def _paint_pole(thing: Pole, *, canvas, camera, light, rng) -> None:
    paint_pole(canvas, camera, light, thing)


def _circle(x: float, z: float, radius: float) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    return np.stack([x + radius * np.cos(angles), z + radius * np.sin(angles)], 1)


def _develop(
    painted: np.ndarray,
    size: tuple[int, int],
    light: Light,
    rng: np.random.Generator,
) -> np.ndarray:
    """Reduce the painting to its final size, with a camera's imperfections."""
    image = cv2.resize(painted, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    if light.lamps_on:
        # Lamps bloom.
        bright = np.maximum(image - 222, 0)
        image += 2.2 * cv2.GaussianBlur(bright, (0, 0), size[0] / 70)
    image *= 1 + rng.normal(0, 0.02, 3).astype(np.float32)
    contrast = rng.uniform(0.97, 1.1)
    image = (image - 118) * contrast + 118 + rng.uniform(-6, 8)
    across = np.linspace(-1, 1, size[0], dtype=np.float32)[None, :]
    down = np.linspace(-1, 1, size[1], dtype=np.float32)[:, None]
    image *= (1 - 0.09 * (across**2 + down**2))[..., None]
    image += rng.standard_normal(image.shape, np.float32) * rng.uniform(1.0, 2.6)
    return np.clip(image, 0, 255).astype(np.uint8)
