"""People, standing or walking."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streets.street.camera import Camera
from streets.street.canvas import Canvas
from streets.street.labels import Label
from streets.street.light import Light, Rgb

_TOPS: tuple[Rgb, ...] = (
    (186, 54, 50),
    (52, 84, 150),
    (222, 214, 196),
    (46, 50, 56),
    (214, 160, 56),
    (70, 130, 110),
    (150, 82, 130),
    (110, 150, 190),
)
_TROUSERS: tuple[Rgb, ...] = ((44, 52, 78), (36, 36, 40), (96, 82, 66), (70, 84, 110))
_SKINS: tuple[Rgb, ...] = ((236, 190, 156), (198, 142, 104), (122, 82, 58))
_HAIRS: tuple[Rgb, ...] = ((44, 32, 26), (104, 68, 38), (196, 160, 96), (120, 118, 116))


@dataclass(frozen=True)
class Person:
    """Somebody on the street.

    Args:
        x: World X in metres.
        z: World Z in metres.
        height: In metres.
        stride: Distance between the feet in metres.
        seed: Of the clothes.
    """

    x: float
    z: float
    height: float
    stride: float
    seed: int


def random_person(x: float, z: float, rng: np.random.Generator) -> Person:
    """Draw somebody at a place."""
    return Person(
        x=x,
        z=z,
        height=rng.uniform(1.55, 1.9),
        stride=rng.uniform(0.1, 0.55),
        seed=int(rng.integers(1 << 31)),
    )


def paint_person(canvas: Canvas, camera: Camera, light: Light, person: Person) -> None:
    """Paint somebody who is in front of the camera."""
    rng = np.random.default_rng(person.seed)
    foot, metre = camera.place((person.x, 0.0, person.z))
    depth = camera.depth(person.x, person.z)
    unit = person.height / 1.75 * metre

    def at(right: float, up: float) -> tuple[float, float]:
        return foot[0] + right * unit, foot[1] - up * unit

    def tone(colours: tuple[Rgb, ...], bright: float = 1.0) -> np.ndarray:
        colour = np.array(colours[int(rng.integers(len(colours)))]) * bright
        return light.shade(colour, (0.0, 0.6, -0.4), depth)

    trousers, top, skin, hair = (tone(c) for c in (_TROUSERS, _TOPS, _SKINS, _HAIRS))
    turn = 1 if rng.random() < 0.5 else -1
    stride = person.stride / 2 * turn
    shoe = light.shade((34, 30, 30), (0.0, 0.6, -0.4), depth)
    for share, dark in ((-1, 0.8), (1, 1.0)):
        knee = at(share * (0.08 + stride * 0.55), 0.48)
        ankle = at(share * (0.08 + abs(stride)) * turn, 0.07)
        canvas.limb(at(share * 0.07, 0.88), knee, 0.17 * unit, trousers * dark, _PERSON)
        canvas.limb(knee, ankle, 0.13 * unit, trousers * dark, _PERSON)
        toe = (ankle[0] + 0.1 * unit * turn, ankle[1] + 0.03 * unit)
        canvas.limb(ankle, toe, 0.09 * unit, shoe, _PERSON)
    swing = stride * 0.7
    for share, dark in ((-1, 0.78), (1, 0.9)):
        elbow = at(share * 0.24 - swing * share * 0.4, 1.12)
        hand = at(share * 0.25 - swing * share, 0.86)
        canvas.limb(at(share * 0.19, 1.4), elbow, 0.11 * unit, top * dark, _PERSON)
        canvas.limb(elbow, hand, 0.1 * unit, top * dark, _PERSON)
        canvas.disc(hand, 0.055 * unit, skin, _PERSON)
    coat = 0.72 if rng.random() < 0.3 else 0.86
    torso = np.array(
        [
            at(-0.2, 1.43),
            at(-0.08, 1.5),
            at(0.08, 1.5),
            at(0.2, 1.43),
            at(0.17, coat),
            at(-0.17, coat),
        ]
    )
    canvas.fill(torso, top, _PERSON)
    canvas.limb(at(0, 1.45), at(0, 1.56), 0.1 * unit, skin * 0.9, _PERSON)
    canvas.disc(at(0, 1.635), 0.115 * unit, skin, _PERSON)
    canvas.disc(at(-0.015 * turn, 1.675), 0.105 * unit, hair, _PERSON)
    canvas.disc(at(0.03 * turn, 1.62), 0.085 * unit, skin, _PERSON)
    if rng.random() < 0.3:
        bag = tone(_TOPS, 0.6)
        canvas.fill(
            np.array([at(0.2, 1.0), at(0.4, 1.0), at(0.38, 0.68), at(0.22, 0.68)]),
            bag,
            _PERSON,
        )


_PERSON = Label.PERSON
