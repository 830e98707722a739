"""Which images are predicted, and where the results go."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..checkpoints.writing import replacing
from .common import require_file

#: Endings of what a folder is searched for, in small letters.
SUFFIXES = (
    '.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp'
)  # fmt: skip
SHOWN = 3


@dataclass(frozen=True)
class Job:
    """An image and the files that its prediction becomes."""

    image: Path
    overlay: Path
    labels: Path


def find_images(
    given: Iterable[str], *, recursive: bool = False, skip: Path | None = None
) -> list[Path]:
    """Lists the images that paths stand for, each one once.

    Args:
        given: Image files, of whatever ending, and folders, of which the files with
            one of ``SUFFIXES`` are meant.
        recursive: Whether folders inside folders are searched too.
        skip: A folder that is left out of such a search, for earlier results.

    Returns:
        The files, those of a folder sorted by name.

    Raises:
        FileNotFoundError: A path does not exist, or a folder has no images.
    """
    images: dict[Path, Path] = {}
    for name in given:
        path = Path(name)
        found = [path]
        if path.is_dir():
            found = _search(path, recursive, skip)
            if not found:
                hint = '' if recursive else '; --recursive looks into its folders'
                raise FileNotFoundError(
                    f'image: the folder {name!r} has no files that end in '
                    f'{" ".join(SUFFIXES)}{hint}'
                )
        else:
            require_file(name, 'image', suffix=path.suffix)
        for image in found:
            images.setdefault(image.resolve(), image)
    return list(images.values())


def _search(folder: Path, recursive: bool, skip: Path | None) -> list[Path]:
    skip = skip and skip.resolve()
    return sorted(
        path
        for path in folder.glob('**/*' if recursive else '*')
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and (skip is None or skip not in path.resolve().parents)
    )


def plan_jobs(images: Sequence[Path], out_dir: Path, *, force: bool) -> list[Job]:
    """Names the files of each image's results.

    Below ``overlays`` and ``labels``, results lie as the images do below the folder
    that they share, so that images of the same name stay apart. Those that differ in
    their ending only keep it: ``street.jpg.png``.

    Args:
        images: Each one once.
        out_dir: Folder of all results.
        force: Whether results that are there may be replaced.

    Returns:
        One job for each image.

    Raises:
        FileExistsError: Results are there, and ``force`` is not given.
        ValueError: A result would replace one of the images.
    """
    paths = [Path(os.path.abspath(image)) for image in images]
    shared = os.path.commonpath([path.parent for path in paths])
    names = [path.relative_to(shared) for path in paths]
    # Some file systems do not tell large letters from small ones.
    stems = Counter(str(name.with_suffix('')).lower() for name in names)
    jobs = []
    for image, name in zip(images, names, strict=True):
        alone = stems[str(name.with_suffix('')).lower()] == 1
        name = Path(f'{name.with_suffix("") if alone else name}.png')
        jobs.append(Job(image, out_dir / 'overlays' / name, out_dir / 'labels' / name))
    _check_targets(jobs, force)
    return jobs


def _check_targets(jobs: Sequence[Job], force: bool) -> None:
    targets = [path for job in jobs for path in (job.overlay, job.labels)]
    images = {job.image.resolve() for job in jobs}
    for path in targets:
        if path.resolve() in images:
            raise ValueError(
                f'--out-dir: the result {path} would replace the image of that name; '
                'give another folder'
            )
    taken = [str(path) for path in targets if path.exists()]
    if taken and not force:
        more = ', ...' if len(taken) > SHOWN else ''
        raise FileExistsError(
            f'--out-dir: {len(taken)} of the {len(targets)} result files exist already '
            f'({", ".join(taken[:SHOWN])}{more}); give another folder, or --force to '
            'replace them'
        )


def write_png(path: Path, pixels: np.ndarray, *, force: bool) -> None:
    """Writes a PNG file, which appears complete or not at all.

    Args:
        path: Its folder is made.
        pixels: (H, W) uint8 or uint16, or (H, W, 3) uint8, RGB.
        force: Whether a file that is there may be replaced.

    Raises:
        OSError: It cannot be written, or is there without ``force``.
    """
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    fine, encoded = cv2.imencode('.png', pixels)
    if not fine:
        raise OSError(f'OpenCV cannot encode {path}')
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, force=force) as temporary:
        temporary.write_bytes(encoded.tobytes())
