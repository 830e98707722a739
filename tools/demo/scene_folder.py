"""Draw street scenes with labels and write them in ADE20K's folder layout.

The scenes are drawn from a seed; nothing is downloaded. OUT gets the folders `images`
and `annotations`, each with `training` and `validation`. Annotations number the classes
from 1; other pixels are 0, which datasets ignore with `reduce_zero_label=True`.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track
from scene_canvas import MOODS, Label
from scene_drawing import Street

from mmseg_twins.checkpoints.writing import check_new_folder
from mmseg_twins.cli import common as cli

CLASSES = tuple(label.name.lower() for label in Label if label)
SIZE = (320, 224)


def write_scenes(
    folder: str | os.PathLike,
    *,
    training: int,
    validation: int,
    seed: int = 0,
    size: tuple[int, int] = SIZE,
    classes: Sequence[str] = CLASSES,
    progress: bool = False,
) -> None:
    """Draw scenes and write them as ``images/*/*.jpg`` and ``annotations/*/*.png``.

    Args:
        folder: new or empty; remains so unless all scenes are written.
        training: number of training scenes.
        validation: number of held-out scenes.
        seed: equal seeds give equal scenes.
        size: width and height in pixels, each at least 64.
        classes: classes to label, in the order of the labels from 1; the rest is 0.
        progress: whether to show a progress bar.

    Raises:
        ValueError: ``folder`` is not empty, or an argument is out of range.
    """
    folder = Path(folder)
    for name, value, least in (
        ('training', training, 1),
        ('validation', validation, 1),
        ('seed', seed, 0),
        ('width or height', min(size), 64),
    ):
        if value < least:
            raise ValueError(f'{name} is {value}; it must be at least {least}')
    if unknown := set(classes) - set(CLASSES):
        raise ValueError(
            f'unknown classes: {", ".join(sorted(unknown))}; give some of '
            f'{", ".join(CLASSES)}'
        )
    check_new_folder(folder, 'OUT')
    table = np.zeros(len(Label), np.uint8)
    table[[Label[name.upper()] for name in classes]] = range(1, len(classes) + 1)
    folder.parent.mkdir(parents=True, exist_ok=True)
    counts = {'training': training, 'validation': validation}
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix='.scenes-') as temporary:
        scenes, jobs = Path(temporary, 'scenes'), []
        for part, (split, count) in enumerate(counts.items()):
            (scenes / 'images' / split).mkdir(parents=True)
            (scenes / 'annotations' / split).mkdir(parents=True)
            jobs += [(split, index, (seed, part, index)) for index in range(count)]
        with ProcessPoolExecutor(_cores(), initializer=_begin) as pool:
            written = pool.map(partial(_write, scenes, size, table), jobs, chunksize=4)
            for _ in track(written, 'Drawing', len(jobs), disable=not progress):
                pass
        scenes.replace(folder)


def _cores() -> int:
    has_affinity = hasattr(os, 'sched_getaffinity')
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1


def _begin() -> None:
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C


def _write(scenes: Path, size: tuple[int, int], table: np.ndarray, job: tuple) -> None:
    split, index, seed = job
    mood = list(MOODS)[index % len(MOODS)]
    image, labels = Street(seed, mood, size).draw()
    name = f'{split}/street_{split}_{index + 1:08d}'
    for path, pixels in (
        (scenes / 'images' / f'{name}.jpg', image[..., ::-1]),
        (scenes / 'annotations' / f'{name}.png', table[labels]),
    ):
        if not cv2.imwrite(str(path), pixels):
            raise OSError(f'{path} cannot be written')


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('out', type=Path, metavar='OUT', help='new or empty folder')
    add_numbers(parser)
    add('--size', type=int, nargs=2, default=SIZE, metavar=('WIDTH', 'HEIGHT'),
        help='in pixels (default: 320 224)')  # fmt: skip
    add('--classes', nargs='+', default=CLASSES, metavar='CLASS',
        help=f'labels in their order (default: {" ".join(CLASSES)})')  # fmt: skip
    return parser


def add_numbers(parser: argparse.ArgumentParser) -> None:
    """Add the options that the quickstart shares."""
    add = parser.add_argument
    add('--training', type=int, default=240, metavar='N',
        help='number of training scenes (default: %(default)s)')  # fmt: skip
    add('--validation', type=int, default=48, metavar='N',
        help='number of held-out scenes (default: %(default)s)')  # fmt: skip
    add('--seed', type=int, default=0, help='seed of all random numbers (default: 0)')


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = make_parser()
    args = vars(parser.parse_args(argv))
    folder = args.pop('out')
    with cli.one_sentence_errors(parser):
        write_scenes(folder, progress=True, **args)
    print(f'{args["training"] + args["validation"]} scenes are in {folder}')
