"""Draw street scenes from a seed: an image, and the class of each pixel.

Lengths are in meters: x to the right of the street's middle, y up, z ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from scene_canvas import NEAR, Canvas, Label, Rgb

FAR = 100.0  # where the street ends
FLOOR = 3.0  # height of a floor, and width of a window's bay

# fmt: off
GROUND = [(102, 104, 112), (186, 176, 160), (118, 152, 76)]  # road, pavement, grass
WALLS = [(226, 205, 170), (196, 112, 82), (214, 160, 96), (172, 182, 156),
         (222, 176, 164), (150, 84, 66), (178, 190, 204), (236, 228, 212),
         (120, 134, 150), (232, 192, 120)]
ROOFS = [(168, 82, 58), (128, 66, 54), (92, 94, 104), (116, 92, 78)]
AWNINGS = [(196, 62, 58), (52, 116, 104), (44, 84, 140), (216, 140, 48)]
PAINTS = [(196, 44, 42), (36, 92, 140), (228, 226, 220), (44, 48, 56), (150, 158, 166),
          (228, 164, 40), (52, 122, 108), (120, 40, 60), (92, 150, 190)]
CLOTHES = [(204, 64, 60), (44, 92, 152), (232, 180, 60), (66, 128, 104), (120, 74, 130),
           (226, 222, 212), (52, 56, 70), (226, 120, 70), (106, 150, 190)]
TROUSERS = [(48, 56, 82), (70, 66, 64), (120, 104, 84), (40, 40, 44), (84, 100, 128)]
SKINS = [(240, 202, 172), (222, 172, 136), (168, 114, 82), (112, 74, 54)]
HAIRS = [(60, 42, 32), (30, 26, 26), (150, 112, 66)]
SIGNS = [(206, 52, 48), (44, 92, 168)]
LEAVES = [(70, 122, 54), (94, 142, 62), (56, 104, 62), (122, 152, 62)]
SEASONS = [LEAVES, LEAVES, [(236, 168, 186), (244, 196, 206), *LEAVES],
           [(206, 128, 46), (186, 84, 44), (214, 168, 60)]]

# Outlines of cars from behind to the front: along the car, and up.
CARS = [[(-1.9, 0.3), (-1.95, 0.9), (-1.55, 1.45), (0.3, 1.48), (1.05, 0.95),
         (1.85, 0.8), (1.95, 0.3)],
        [(-2.2, 0.3), (-2.2, 0.95), (-1.55, 1.0), (-0.95, 1.42), (0.35, 1.44),
         (1.1, 0.95), (2.1, 0.8), (2.2, 0.3)],
        [(-2.4, 0.35), (-2.45, 1.1), (-2.4, 2.0), (1.0, 2.05), (1.7, 1.15),
         (2.3, 1.0), (2.4, 0.35)]]
# fmt: on


class Street:
    """A street with buildings, trees, cars and people.

    Args:
        seed: equal seeds give equal streets, with the same version of OpenCV.
        mood: the light, one of ``scene_canvas.MOODS``.
        size: width and height of the image in pixels.
    """

    def __init__(
        self, seed: int | Sequence[int], mood: str, size: tuple[int, int]
    ) -> None:
        self.rng = rng = np.random.default_rng(seed)
        self.parking = 2.1 if rng.random() < 0.7 else 0.0
        self.lanes = int(rng.choice([2, 3], p=[0.8, 0.2]))
        self.drive = self.lanes * 1.6  # half of the lanes' width
        self.road = self.drive + self.parking
        self.verge = rng.uniform(1.5, 2.5) if rng.random() < 0.55 else 0.0
        self.edge = self.road + self.verge + rng.uniform(2.8, 4.4)
        start = rng.uniform(13, 22) if rng.random() < 0.4 else np.inf
        self.crossing = (start, start + 8.0)
        self.zebra = start - 4.5 if start < np.inf else rng.choice([9.0, np.inf])
        self.sides = rng.choice(['town', 'houses', 'park'], 2, p=[0.45, 0.33, 0.22])
        self.leaves = SEASONS[rng.integers(len(SEASONS))]
        on_road, side = rng.random() < 0.6, rng.choice([-1, 1])
        x = rng.uniform(0, 0.6 * self.drive) if on_road else self.edge - 1.9
        # A camera at the side looks across the street.
        turn = 0.5 * side * x / self.edge * rng.uniform(0.1, 0.5)
        self.canvas = Canvas(rng, size, mood, (side * x, rng.uniform(1.6, 2.6)), turn)
        self.things: list[tuple[float, Callable[..., None], tuple]] = []

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the image, (H, W, 3) uint8 in RGB, and its labels, (H, W) uint8."""
        self.canvas.paint_sky()
        self.paint_ground()
        for side, kind in zip((-1, 1), self.sides, strict=True):
            self.place_buildings(side, kind)
            self.place_at_kerb(side)
        for lane in range(self.lanes):
            x = self.drive * ((2 * lane + 1) / self.lanes - 1)
            heading = 1 if x > 0.1 else -1
            self.row(self.paint_car, x, self.rng.uniform(7, 16), 13, 0.6, heading)
        for _ in range(self.rng.integers(0, 4) if self.zebra < np.inf else 0):
            x = self.rng.uniform(-0.9, 0.9) * self.road
            self.place(self.paint_person, x, self.zebra + self.rng.uniform(0.4, 2.4))
        for _, paint, where in sorted(self.things, key=lambda thing: -thing[0]):
            paint(*where)
        return self.canvas.finish()

    # ---- where things are ----------------------------------------------------------

    def place(self, paint: Callable, x: float, z: float, *more, behind: float = 0):
        """Schedule something to paint, the farthest first; ``behind`` is added to z."""
        self.things.append((z + behind, paint, (x, z, *more)))

    def row(
        self, paint: Callable, x: float, start: float, step: float, share: float, *more
    ) -> None:
        """Place things along the street, with gaps and clear of crossings."""
        for z in np.arange(start, 60, step):
            if self.rng.random() < share and not (
                self.zebra - 3.5 < z < self.zebra + 6
                or self.crossing[0] - 3.5 < z < self.crossing[1] + 3.5
            ):
                self.place(paint, x, z + self.rng.normal(0, 0.2), *more)

    def place_buildings(self, side: int, kind: str) -> None:
        """Line one side of the street with buildings and gardens, and close its end."""
        rng, town = self.rng, kind == 'town'
        front = self.edge + (0 if town else rng.uniform(3.5, 6))
        z = rng.uniform(-9, -5)
        while z < FAR:
            bays = int(rng.integers(3, 6))
            if self.crossing[0] - 2 - bays * FLOOR < z < self.crossing[1] + 2:
                z = self.crossing[1] + 2.5
            if kind == 'park' or rng.random() < 0.15:
                for _ in range(3):
                    x, at = self.edge + rng.uniform(2, 14), z + rng.uniform(0, 9)
                    self.place(self.paint_tree, side * x, max(5, at), behind=FAR)
            else:
                floors = int(rng.integers(3, 7)) if town else 2
                x = side * front
                self.place(self.paint_building, x, z, bays, floors, behind=FAR)
            z += bays * FLOOR + (0 if town else rng.uniform(2, 5))
        for x in side * np.arange(0.1, 90, 13):
            z, floors = FAR + rng.uniform(0, 9), int(rng.integers(2, 8))
            self.place(self.paint_building, x, z, 4, floors, behind=FAR)

    def place_at_kerb(self, side: int) -> None:
        """Place trees, parked cars, lamps, a sign and people at one side."""
        rng = self.rng
        share, x = rng.choice([0, 0.9]), side * (self.road + (self.verge / 2 or 0.8))
        self.row(self.paint_tree, x, rng.uniform(7, 12), rng.uniform(8, 14), share)
        share = rng.uniform(0.4, 0.9) if self.parking else 0
        self.row(self.paint_car, side * (self.road - 1.1), 6, 6, share, side)
        share, x = rng.choice([0, 1]), side * (self.road + 0.5)
        self.row(self.paint_pole, x, rng.uniform(8, 16), 24, share, 'lamp')
        self.row(self.paint_pole, x, rng.uniform(8, 20), 80, 0.5, 'sign')
        for _ in range(rng.integers(2, 5)):
            x = rng.uniform(self.road + self.verge + 0.4, self.edge - 0.4)
            self.place(self.paint_person, side * x, rng.uniform(4, 8.5))

    # ---- what they look like -------------------------------------------------------

    def paint_ground(self) -> None:
        """Paint road, pavements and grass up to the horizon."""
        canvas = self.canvas
        top = int(canvas.center[1]) + 1
        height, width = canvas.labels.shape
        v, u = np.mgrid[top:height, :width].astype(np.float32)
        z = np.minimum(canvas.focal * canvas.eye[1] / (v - canvas.center[1]), 400)
        x = (u - canvas.center[0]) * z / canvas.focal + canvas.eye[0]
        x -= canvas.bend * z**2
        side, (start, end) = np.abs(x), self.crossing
        across = (z > start) & (z < end)
        road = (side < self.road) | across
        kerb = (side < self.road + 0.2) & (self.verge == 0)
        pavement = (side > self.road + self.verge) & (side < self.edge)
        pavement |= (z > start - 2.5) & (z < end + 2.5)
        pavement |= (side > self.edge) & np.where(x < 0, *(self.sides == 'town'))
        kind = np.where(road, 0, np.where(pavement, 1, 2))
        canvas.labels[top:] = Label.ROAD + kind

        colors = [canvas.pick([color]) for color in GROUND]
        ground = canvas.lit(colors, (0, 1, 0)).astype(np.float32)[kind]
        grain = canvas.noise(512, 512, 8) - 0.5
        grain = grain[(z * 14).astype(int) % 512, (x * 14).astype(int) % 512]
        strength = np.float32([0.22, 0.16, 0.9])[kind] * (0.25 + np.exp(-z / 18))
        ground *= (1 + strength * grain)[..., None]
        joints = (x % 1.1 < 0.06) | (z % 1.1 < 0.06)
        ground[joints & (kind == 1) & (z < 16)] *= 0.9
        ground[kerb & ~road] *= 1.15

        lane = 2 * self.drive / self.lanes
        lines = ((x + self.drive) % lane < 0.14) & (side < self.drive - 1) & (z % 6 < 3)
        lines |= np.abs(side - self.drive + 0.2) < 0.06
        lines |= (side > self.drive) & (z % 6 < 0.12)
        zebra = (z > self.zebra) & (z < self.zebra + 2.8)
        lines = np.where(zebra, x % 1.1 < 0.55, lines & ~across)
        ground[lines & (side < self.road)] *= 1.75
        canvas.colors[top:] = np.dstack([ground, z])

    def paint_building(self, x: float, z: float, bays: int, floors: int) -> None:
        """Paint a building whose wall stands at ``x``, from ``z`` on."""
        canvas, side, end = self.canvas, np.sign(x), z + bays * FLOOR
        color, roof, awning = map(canvas.pick, (WALLS, ROOFS, AWNINGS))
        height, depth = floors * FLOOR, side * 3 * FLOOR
        base = np.array([(x, z), (x + depth, z), (x + depth, end), (x, end)])
        canvas.cast(base, 0, height)
        facade, front = canvas.lit(color, [(-side, 0, 0), (0, 0, -1)])
        self.paint_wall((x, 0, z), (side * FLOOR, 0, 0), 3, floors, front)
        self.paint_wall((x, 0, z), (0, 0, FLOOR), bays, floors, facade)
        top, shade = (x - side * 0.3, height + 0.4), facade * 1.1 + 8
        if floors < 3 or self.rng.random() < 0.4:
            top = (x + depth / 2, height + 2.9)
            shade = canvas.lit(roof, (-side * 0.55, 0.83, 0))
            if z > NEAR:
                gable = [(x, height, z), (x + depth, height, z), (*top, z)]
                canvas.fill(gable, front, Label.BUILDING)
        eave = (x - side * 0.3, height - 0.1)
        for near in np.arange(z, end, FLOOR):
            along = (0, 0, FLOOR)
            canvas.strip((*eave, near), (*top, near), along, shade, Label.BUILDING)
        if floors > 2 and self.rng.random() < 0.5:
            stripes = canvas.lit([awning, (240, 234, 222)], (0, 0.9, -0.4))
            for number, near in enumerate(np.arange(max(z, 10), end, 0.5)):
                low, high = (x - side, 2.2, near), (x, 2.85, near)
                color = stripes[number % 2]
                canvas.strip(low, high, (0, 0, 0.5), color, Label.BUILDING)

    def paint_wall(
        self, corner: Sequence, along: Sequence, bays: int, floors: int, color: Rgb
    ) -> None:
        """Paint a wall from its corner (3,) on, a bay being ``along`` (3,)."""
        canvas, rng, along = self.canvas, self.rng, np.array(along)

        def fill(left: float, low: float, right: float, high: float, color: Rgb):
            start = corner + left * along
            ends = (start + (0, FLOOR * floor, 0) for floor in (low, high))
            canvas.strip(*ends, (right - left) * along, color, Label.BUILDING)

        frame = np.minimum(color * 1.3 + 12, 250)
        for bay in range(bays):
            depth = corner[2] + along[2] * (bay + 1)
            if depth < NEAR:
                continue
            fill(bay, 0, bay + 1, floors, color)
            for floor in range(floors):
                lamp = canvas.lamps_on and rng.random() < 0.4
                pane = (255, 206, 128) if lamp else canvas.glass * rng.uniform(0.8, 1.5)
                if depth < 35:
                    fill(bay + 0.23, floor + 0.19, bay + 0.77, floor + 0.82, frame)
                fill(bay + 0.28, floor + 0.24, bay + 0.72, floor + 0.78, pane)
                if depth < 35:
                    fill(bay + 0.48, floor + 0.24, bay + 0.52, floor + 0.78, frame)

    def paint_tree(self, x: float, z: float) -> None:
        """Paint a round or a slim tree."""
        canvas, rng = self.canvas, self.rng
        color, trunk = canvas.pick(self.leaves), rng.uniform(1.8, 2.6)
        size = np.array([1.2, 3.4, 1.2] if rng.random() < 0.2 else [2.2, 2.1, 2.2])
        size *= rng.uniform(0.75, 1.3)
        middle = np.array([x, trunk + 0.85 * size[1], z])
        turn = np.linspace(0, 2 * np.pi, 10)
        circle = np.stack([np.cos(turn), np.sin(turn)], 1)
        canvas.cast((x, z) + 0.2 * circle, 0, trunk)
        canvas.cast((x, z) + size[0] * circle, trunk, trunk + 1.7 * size[1])
        bark = canvas.lit((104, 84, 68), (0, 0, -0.6))
        canvas.line([(x, 0, z), middle], 0.32, bark, Label.TREE)
        # Large clumps of leaves first, then small ones in front of them.
        for count, reach, radius in ((45, 0.7, 0.36), (130, 0.95, 0.15)):
            normals = rng.normal(size=(count if z < 60 else 30, 3)) - (0, 0, 0.4)
            normals /= np.linalg.norm(normals, axis=1, keepdims=True)
            normals = normals[normals[:, 2].argsort()[::-1]]
            light = 0.86 + 0.22 * normals[:, 1] + rng.normal(0, 0.06, len(normals))
            places = middle + normals * size * (reach, reach, 0)
            leaves = canvas.lit(color, normals) * light[:, None]
            canvas.discs(places, radius * size[0], leaves, Label.TREE)

    def paint_car(self, x: float, z: float, heading: int) -> None:
        """Paint a car that drives away (1) or approaches (-1)."""
        canvas = self.canvas
        outline = np.array(CARS[self.rng.choice(3, p=[0.45, 0.4, 0.15])])
        color, belt = canvas.pick(PAINTS), outline[1, 1]
        black = canvas.lit((34, 35, 40), (0, 0.3, -0.5))

        def fill(profile: Sequence, widths: Sequence, color: Rgb) -> None:
            along, up = np.transpose(profile)
            across = np.array(widths) * (1 - 0.28 * np.maximum(0, up - belt))
            points = np.stack([x + across, up, z + heading * along], 1)
            canvas.fill(points, color, Label.CAR)

        half = np.array([0.88, -0.88, -0.88, 0.88])
        ends = outline[[0, 0, -1, -1]]
        canvas.cast(np.stack([x + half, z + ends[:, 0]], 1), 0.2, outline[:, 1].max())
        fill(ends * (1, 0.6), half, black)
        for low, high in [*pairwise(outline)][::-heading]:
            run, rise = high - low
            normal = np.array((0, run, -rise * heading)) / np.hypot(run, rise)
            fill([low, low, high, high], half, canvas.lit(color, normal))
            if abs(rise) > 0.3 and max(low[1], high[1]) > belt + 0.2:
                low, high = low + 0.1 * (high - low), high - 0.1 * (high - low)
                glass = canvas.glass * (1.1 + normal[1])
                fill([low, low, high, high], 0.84 * half, glass)

        side = np.sign(canvas.eye[0] - x)
        width, shade = 0.88 * side, 0.92 * canvas.lit(color, (side, 0, 0))
        fill(outline, [width] * len(outline), shade)
        cabin = outline[outline[:, 1] >= belt - 0.01]
        middle = cabin.mean(0)
        window = middle + (0, 0.02) + (cabin - middle) * (0.86, 0.72)
        fill(window, [width] * len(window), 1.2 * canvas.glass)
        pillar = middle[0] + np.array([-0.1, 0, 0, -0.1]), [belt, belt, 1.4, 1.4]
        fill(np.stack(pillar, 1), [width] * 4, 0.9 * shade)
        turn = np.linspace(0, 2 * np.pi, 14)
        for axle in (outline[0, 0] + 0.75, outline[-1, 0] - 0.75):
            for radius, tone in ((0.36, black), (0.2, black + 100)):
                ring = (axle + radius * np.cos(turn), 0.34 + radius * np.sin(turn))
                fill(np.stack(ring, 1), [1.01 * width] * 14, tone)

        end = ends[0, 0] - 0.03 if heading > 0 else ends[-1, 0] + 0.03
        lamp = (216, 44, 40) if heading > 0 else (255, 244, 214)
        for left, right, low, high, tone in (
            (-0.88, 0.88, 0.28, 0.42, 1.3 * black),
            (-0.82, -0.45, 0.62, 0.76, lamp),
            (0.45, 0.82, 0.62, 0.76, lamp),
            (-0.26, 0.26, 0.46, 0.57, canvas.lit((236, 236, 226), (0, 0, -1))),
        ):
            corners = [(end, low), (end, low), (end, high), (end, high)]
            fill(corners, [left, right, right, left], tone)

    def paint_person(self, x: float, z: float) -> None:
        """Paint a person walking."""
        canvas, rng = self.canvas, self.rng
        tall, step = rng.uniform(1.55, 1.9), rng.uniform(-0.26, 0.26)
        hem = 0.34 if rng.random() < 0.3 else 0.5  # of a coat or a jacket
        colors = map(canvas.pick, (CLOTHES, TROUSERS, SKINS, HAIRS, HAIRS))
        light = (0.3 * np.sign(canvas.sun[0]), 0.3, -0.9)
        jacket, trousers, skin, hair, shoe = canvas.lit([*colors], light)
        face = skin if rng.random() < 0.6 else hair
        canvas.cast(np.array([(x - 0.2, z), (x + 0.2, z), (x, z + 0.15)]), 0, tall)
        # fmt: off
        for points, width, color in (  # y in shares of the height
            ([(-0.06, 0.5), (-0.55 * step, 0.26), (-step, 0.03)], 0.15, trousers * 0.9),
            ([(-step, 0.02), (0.07 - step, 0.015)], 0.1, shoe),
            ([(0.06, 0.5), (0.55 * step, 0.26), (step, 0.03)], 0.15, trousers),
            ([(step, 0.02), (0.07 + step, 0.015)], 0.1, shoe),
            ([(0.21, 0.78), (0.25 - 0.3 * step, 0.62), (0.24 - step, 0.5)], 0.11,
             jacket * 0.82),
            ([(-0.1, 0.79), (0.1, 0.79), (0.08, hem), (-0.08, hem), (-0.1, 0.79)], 0.16,
             jacket),
            ([(0, 0.77), (0, hem + 0.02)], 0.22, jacket),
            ([(-0.21, 0.78), (0.3 * step - 0.25, 0.62), (step - 0.24, 0.5)], 0.11,
             jacket * 1.1),
            ([(0, 0.84), (0, 0.9)], 0.1, skin * 0.85),
            ([(0, 0.945), (0, 0.945)], 0.24, hair),
            ([(0, 0.925), (0, 0.925)], 0.2, face),
        ):
            points = [(x + a, b * tall, z) for a, b in points]
            canvas.line(points, width, color, Label.PERSON)
        # fmt: on

    def paint_pole(self, x: float, z: float, kind: str) -> None:
        """Paint a street lamp or a traffic sign, which have no class."""
        canvas, arm = self.canvas, x - 1.3 * np.sign(x)
        top = 5.6 if kind == 'lamp' else 2.5
        colors = [(84, 88, 94), canvas.pick(SIGNS), (240, 240, 236)]
        gray, color, white = canvas.lit(colors, (0, 0.3, -0.8))
        canvas.cast(np.array([(x - 0.06, z), (x + 0.06, z)]), 0, top)
        lines = [([(x, 0), (x, top)], 0.12, gray)]
        if kind == 'lamp':
            lines += [([(x, top), (arm, 5.8)], 0.12, gray)]
            bulb = (255, 232, 170) if canvas.lamps_on else white
            lines += [([(arm - 0.3, 5.75), (arm + 0.2, 5.75)], 0.2, bulb)]
        else:
            lines += [([(x, top), (x, top)], 0.72, color)]
            lines += [([(x - 0.16, top), (x + 0.16, top)], 0.12, white)]
        for points, width, tone in lines:
            canvas.line([(*point, z) for point in points], width, tone, Label.OTHER)
