"""The demo's classes, as they are numbered in its annotation files.

The convention is ADE20K's: 0 is everything that is not scored, the classes
count from 1. Datasets read them with ``reduce_zero_label=True``, which makes
them 0, 1, ... and turns 0 into the ignored 255.
"""

from __future__ import annotations

from enum import IntEnum


class Label(IntEnum):
    """What a pixel shows, as written to the annotation files."""

    OTHER = 0
    SKY = 1
    BUILDING = 2
    ROAD = 3
    PAVEMENT = 4
    GRASS = 5
    TREE = 6
    CAR = 7
    PERSON = 8


#: Names of the scored classes, in the order of their numbers.
CLASSES: tuple[str, ...] = tuple(
    label.name.lower() for label in Label if label is not Label.OTHER
)

#: RGB colours of the scored classes, in the same order.
PALETTE: tuple[tuple[int, int, int], ...] = (
    (126, 184, 230),  # sky
    (178, 132, 110),  # building
    (98, 92, 118),  # road
    (222, 202, 164),  # pavement
    (158, 205, 96),  # grass
    (52, 128, 74),  # tree
    (228, 78, 72),  # car
    (250, 186, 44),  # person
)

#: RGB colour of what is not scored.
OTHER_COLOUR: tuple[int, int, int] = (245, 245, 245)
