"""Lay out your own images like ADE20K, so that the configs run on them.

SOURCE has `images/*.jpg` and `annotations/*.png` with the same names; annotations have
one channel, 0 for "other" and 1 to 150 for ADE20K's classes. By default, all images are
used for both training and validation, to try things out: results on training images say
nothing about quality. `--held-out N` keeps the last N for validation. The configs
expect the result in data/ade/ADEChallengeData2016.

ADE20K itself, ADEChallengeData2016.zip, has this layout already.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

DEFAULT_TARGET = Path('data/ade/ADEChallengeData2016')
NUM_CLASSES = 150


def find_pairs(source: Path) -> list[tuple[Path, Path]]:
    """Find images and their annotations.

    Args:
        source: folder with the folders ``images`` and ``annotations``.

    Returns:
        Pairs of image and annotation, in the order of their names.

    Raises:
        FileNotFoundError: a folder, an image or an annotation is missing.
        ValueError: there are no images, or one is not a JPEG file.
    """
    for folder in (source / 'images', source / 'annotations'):
        if not folder.is_dir():
            raise FileNotFoundError(
                f'SOURCE: the folder {str(folder)!r} does not exist; SOURCE needs '
                'images/ and annotations/'
            )
    files = visible_files(source / 'images')
    wrong = [
        file.name for file in files if file.suffix.lower() not in ('.jpg', '.jpeg')
    ]
    if wrong:
        raise ValueError(
            f'SOURCE: {wrong[0]!r} in {str(source / "images")!r} is not a .jpg file, '
            "the only format that mmsegmentation's ADE20KDataset reads"
        )
    images = {file.stem: file for file in files}
    annotations = {file.stem: file for file in visible_files(source / 'annotations')}
    if not images:
        raise ValueError(f'SOURCE: there is no image in {str(source / "images")!r}')
    for name in sorted(images.keys() ^ annotations.keys()):
        has, lacks = 'image', 'annotation'
        if name in annotations:
            has, lacks = lacks, has
        raise FileNotFoundError(f'SOURCE: the {has} {name!r} has no {lacks}')
    return [(images[name], annotations[name]) for name in sorted(images)]


def visible_files(folder: Path) -> list[Path]:
    """Return the files of a folder, sorted by name, without hidden ones."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.is_file() and not file.name.startswith('.')
    )


def check_pair(image: Path, annotation: Path) -> None:
    """Check that an annotation belongs to its image and has ADE20K's format.

    Raises:
        ValueError: it is not a PNG file with one channel of class numbers in the size
            of the image, or one of the two files cannot be read.
    """
    try:
        with Image.open(image) as file:
            size = file.size
        with Image.open(annotation) as file:
            labels, kind = np.asarray(file), (file.format, file.mode)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(
            f'{image.stem!r}: image or annotation cannot be read: {error}'
        ) from error
    if kind not in (('PNG', 'L'), ('PNG', 'P')):
        raise ValueError(
            f'{str(annotation)!r} is {kind[0]} with mode {kind[1]}; annotations are '
            'PNG files with one channel of 8 bits'
        )
    if labels.shape != size[::-1]:
        raise ValueError(
            f'{str(annotation)!r} has {labels.shape[1]}x{labels.shape[0]} px, its '
            f'image {size[0]}x{size[1]}'
        )
    if labels.max() > NUM_CLASSES:
        raise ValueError(
            f'{str(annotation)!r} has the label {labels.max()}; labels are 0 (other) '
            f'to {NUM_CLASSES}'
        )


def lay_out(
    pairs: Sequence[tuple[Path, Path]],
    target: Path,
    *,
    held_out: int = 0,
    symlink: bool = False,
) -> dict[str, int]:
    """Write images and annotations in ADE20K's layout.

    Args:
        pairs: from :func:`find_pairs`.
        target: gets ``images`` and ``annotations``, each with ``training`` and
            ``validation``.
        held_out: number of pairs at the end that are for validation only; 0 uses all
            pairs for both.
        symlink: whether to link to the files instead of copying them.

    Returns:
        The number of pairs for ``'training'`` and for ``'validation'``.

    Raises:
        FileExistsError: ``target`` is not empty.
        ValueError: ``held_out`` leaves nothing for training.
    """
    if not 0 <= held_out < len(pairs):
        raise ValueError(
            f'--held-out: {held_out} of {len(pairs)} images; give 0 to {len(pairs) - 1}'
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(
            f'--out: {str(target)!r} is not empty; give a new folder, so that nothing '
            'in it is overwritten'
        )
    parts = {
        'training': pairs[: len(pairs) - held_out],
        'validation': pairs[-held_out:],  # all of them for 0
    }
    for part, members in parts.items():
        for kind in ('images', 'annotations'):
            (target / kind / part).mkdir(parents=True)
        for image, annotation in members:
            for file, kind, suffix in (
                (image, 'images', '.jpg'),
                (annotation, 'annotations', '.png'),
            ):
                place = target / kind / part / (file.stem + suffix)
                if symlink:
                    place.symlink_to(file.resolve())
                else:
                    shutil.copyfile(file, place)
    return {part: len(members) for part, members in parts.items()}


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'source', type=Path, metavar='SOURCE', help='folder of images/ and annotations/'
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=DEFAULT_TARGET,
        metavar='FOLDER',
        help=f'new folder to write to (default: {DEFAULT_TARGET})',
    )
    parser.add_argument(
        '--held-out',
        type=int,
        default=0,
        metavar='N',
        help='keep the last N images for validation (default: 0, all for both)',
    )
    parser.add_argument(
        '--symlink', action='store_true', help='link to the files instead of copying'
    )
    return parser


def main() -> None:
    """Run the command."""
    parser = make_parser()
    args = parser.parse_args()
    try:
        pairs = find_pairs(args.source)
        for pair in pairs:
            check_pair(*pair)
        numbers = lay_out(pairs, args.out, held_out=args.held_out, symlink=args.symlink)
    except (ValueError, OSError) as error:
        parser.exit(2, f'{parser.prog}: error: {error}\n')
    same = '' if args.held_out else ' (the same images)'
    print(
        f'{args.out}: {numbers["training"]} images for training, '
        f'{numbers["validation"]} for validation{same}'
    )


if __name__ == '__main__':
    main()
