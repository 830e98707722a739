"""Trees: a trunk, and a crown built from clumps of leaves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from streets.street.camera import Camera
from streets.street.canvas import Canvas
from streets.street.labels import Label
from streets.street.light import Light, Rgb

_LEAVES: tuple[Rgb, ...] = (
    (74, 118, 48),
    (58, 104, 54),
    (96, 130, 52),
    (48, 92, 60),
    (112, 128, 60),
)
_AUTUMN: tuple[Rgb, ...] = ((190, 130, 46), (176, 92, 40), (150, 120, 50))
_NEEDLES: tuple[Rgb, ...] = ((44, 84, 58), (52, 92, 66))

_VARIANTS = 5
_CROWN_SIZES = (24, 48, 96, 192)
# Half the side of a crown's picture, where half the crown's width is 1.
_REACH = 1.25


@dataclass(frozen=True)
class Tree:
    """A tree.

    Args:
        x: World X in metres.
        z: World Z in metres.
        height: In metres.
        kind: ``'round'``, ``'tall'`` or ``'conifer'``.
        leaves: RGB of the leaves.
    """

    x: float
    z: float
    height: float
    kind: str
    leaves: Rgb

    @property
    def crown(self) -> tuple[float, float, float]:
        """Height of the crown's middle, and half its width and height."""
        if self.kind == 'conifer':
            return 0.54 * self.height, 0.2 * self.height, 0.46 * self.height
        if self.kind == 'tall':
            return 0.6 * self.height, 0.2 * self.height, 0.4 * self.height
        return 0.65 * self.height, 0.33 * self.height, 0.35 * self.height


def random_tree(x: float, z: float, autumn: bool, rng: np.random.Generator) -> Tree:
    """Draw a tree of random kind and size at a place."""
    kind = str(rng.choice(['round', 'tall', 'conifer'], p=[0.64, 0.2, 0.16]))
    colours = _NEEDLES if kind == 'conifer' else _AUTUMN if autumn else _LEAVES
    leaves = np.array(colours[int(rng.integers(len(colours)))])
    leaves = leaves + rng.uniform(-10, 10, 3)
    height = {
        'round': rng.uniform(4.2, 8.0),
        'tall': rng.uniform(6.0, 10.0),
        'conifer': rng.uniform(4.5, 9.0),
    }[kind]
    return Tree(x=x, z=z, height=height, kind=kind, leaves=tuple(leaves))


def paint_tree(
    canvas: Canvas,
    camera: Camera,
    light: Light,
    tree: Tree,
    rng: np.random.Generator,
) -> None:
    """Paint a tree that is in front of the camera."""
    foot, metre = camera.place((tree.x, 0.0, tree.z))
    depth = camera.depth(tree.x, tree.z)
    middle, half_width, half_height = tree.crown

    bark = light.shade((98, 76, 58), (0.0, 0.3, -0.6), depth)
    girth = 0.035 * tree.height * metre
    top = (foot[0] + rng.uniform(-0.2, 0.2) * metre, foot[1] - middle * metre)
    canvas.fill(
        np.array(
            [
                [foot[0] - girth * 0.6, foot[1]],
                [top[0] - girth * 0.3, top[1]],
                [top[0] + girth * 0.3, top[1]],
                [foot[0] + girth * 0.6, foot[1]],
            ]
        ),
        bark,
        Label.TREE,
    )
    canvas.limb(
        (foot[0] - girth * 0.3, foot[1]),
        (top[0] - girth * 0.15, top[1]),
        girth * 0.25,
        bark * 0.7,
        None,
    )

    # The sun's direction as the camera sees it, for the crown's bright side.
    side = camera.view(np.array([light.sun]) + camera.eye)[0]
    side = np.array([side[0], light.sun[1] + 0.5, -side[2]])
    side /= np.linalg.norm(side)
    size = (
        max(4, round(2 * _REACH * half_width * metre)),
        max(4, round(2 * _REACH * half_height * metre)),
    )
    corner = (
        round(top[0] - size[0] / 2),
        round(foot[1] - middle * metre - size[1] / 2),
    )
    variant, mirrored = int(rng.integers(_VARIANTS)), bool(rng.random() < 0.5)
    side_length = next((n for n in _CROWN_SIZES if n >= max(size)), _CROWN_SIZES[-1])
    crown = _crown(tree.kind, variant, mirrored, side_length)
    _paint_crown(canvas, light, tree, crown, corner, size, side, depth)


def _paint_crown(
    canvas: Canvas,
    light: Light,
    tree: Tree,
    crown: tuple[np.ndarray, np.ndarray],
    corner: tuple[int, int],
    size: tuple[int, int],
    side: np.ndarray,
    depth: float,
) -> None:
    """Bring a crown to its size, light it, and lay it over the canvas."""
    height, width = canvas.labels.shape
    left, top = max(0, corner[0]), max(0, corner[1])
    right, bottom = min(width, corner[0] + size[0]), min(height, corner[1] + size[1])
    if right <= left or bottom <= top:
        return
    seen = (
        slice(top - corner[1], bottom - corner[1]),
        slice(left - corner[0], right - corner[0]),
    )
    how = cv2.INTER_AREA if max(size) < crown[0].shape[0] else cv2.INTER_LINEAR
    opaque, leaves = (cv2.resize(part, size, interpolation=how)[seen] for part in crown)
    facing = leaves[..., :3] @ side.astype(np.float32)
    bright = 0.64 + 0.36 * facing + 0.14 * leaves[..., 1] + 0.13 * leaves[..., 3]
    tone = (np.array(tree.leaves) * light.lit((0.0, 0.8, 0.0))).astype(np.float32)
    colour = light.haze(np.maximum(bright, 0.12)[..., None] * tone, depth)
    behind = canvas.image[top:bottom, left:right]
    behind[:] = np.clip(behind + (colour - behind) * opaque[..., None], 0, 255)
    canvas.labels[top:bottom, left:right][opaque > 0.5] = Label.TREE


@cache
def _crown(
    kind: str, variant: int, mirrored: bool, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Crown without colour and light, made once and used for many trees.

    Args:
        kind: As in :class:`Tree`.
        variant: Number of the crown among those of its kind.
        mirrored: Whether left and right are exchanged.
        size: H and W, one of ``_CROWN_SIZES``.

    Returns:
        Opacity (H, W), and (H, W, 4) the direction (right, up, front) in which
        the leaves face and their difference in tone; both float32.
    """
    if size < _CROWN_SIZES[-1]:
        opaque, leaves = (
            cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA)
            for part in _crown(kind, variant, mirrored, _CROWN_SIZES[-1])
        )
        return opaque, leaves
    rng = np.random.default_rng((variant, *kind.encode()))
    half = size / 2
    mirror = -1 if mirrored else 1
    opaque = np.zeros((size, size), np.float32)
    leaves = np.zeros((size, size, 4), np.float32)

    def dab(right: float, up: float, radius: float, values: np.ndarray) -> None:
        values[0] *= mirror
        x, y = half + mirror * right * half / _REACH, half - up * half / _REACH
        centre = round(x * 16), round(y * 16)
        extent = round(radius * half / _REACH * 16)
        cv2.circle(leaves, centre, extent, values.tolist(), -1, cv2.LINE_8, 4)
        cv2.circle(opaque, centre, extent, 1.0, -1, cv2.LINE_8, 4)

    clump = 0.3 if kind == 'round' else 0.24
    for right, up, front in _places(kind, 80, rng):
        radius = clump * rng.uniform(0.6, 1.0)
        away = np.array([right, up, front]) / max(0.3, np.hypot(right, up), front)
        dab(right, up, radius, np.append(away * 0.6, -0.6))
        for _ in range(26):
            angle, reach = rng.uniform(0, 2 * np.pi), np.sqrt(rng.uniform(0, 1.1))
            offset = np.array([np.cos(angle), np.sin(angle), 0.0]) * reach
            facing = 0.6 * away + 0.55 * offset
            dab(
                right + offset[0] * radius,
                up + offset[1] * radius,
                0.05 * rng.uniform(0.6, 1.2),
                np.append(facing, rng.uniform(-1, 1)),
            )
    return opaque, leaves


def _places(kind: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Places of clumps (right, up, front) within a unit crown, back to front."""
    places = rng.standard_normal((count, 3))
    places /= np.linalg.norm(places, axis=1, keepdims=True)
    places *= rng.uniform(0.3, 0.9, (count, 1)) ** 0.5
    if kind == 'conifer':
        # Wide at the bottom, a point at the top.
        taper = 0.06 + 0.94 * (1 - (places[:, 1] + 0.95) / 1.9)
        places[:, [0, 2]] *= 1.35 * taper[:, None]
    return places[np.argsort(places[:, 2])]
