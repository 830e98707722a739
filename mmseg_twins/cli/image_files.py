"""Find the images to predict, and choose the files of their results."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..apis.rows import is_tiff, part_of
from ..state_dicts import some
from .common import require_file

#: Suffixes, in lower case, of the files that a folder is searched for.
SUFFIXES = (
    '.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp'
)  # fmt: skip


class Job(NamedTuple):
    """An image and the files of its results."""

    image: Path
    overlay: Path | None
    labels: Path
    confidence: Path | None

    @property
    def targets(self) -> list[Path]:
        """The files to write."""
        paths = self.overlay, self.labels, self.confidence
        return [path for path in paths if path is not None]


def find_images(
    given: Iterable[str], *, recursive: bool = False, skip: Path | None = None
) -> list[Path]:
    """List image files without duplicates.

    Args:
        given: files, with any suffix, and folders, which are searched for files with
            one of ``SUFFIXES``, sorted by name.
        recursive: whether to search subfolders.
        skip: a folder of results, which is not searched.

    Raises:
        FileNotFoundError: a path does not exist, or a folder has no images.
    """
    images: dict[Path, Path] = {}
    for name in given:
        path = Path(name)
        if not path.is_dir():
            require_file(name, 'image', suffix=path.suffix)
            found = [path]
        elif not (found := search(path, recursive, skip and skip.resolve())):
            hint = '' if recursive else '; --recursive searches its subfolders'
            raise FileNotFoundError(
                f'image: the folder {name!r} has no files that end in '
                f'{" ".join(SUFFIXES)}{hint}'
            )
        for image in found:
            images.setdefault(image.resolve(), image)
    return list(images.values())


def search(folder: Path, recursive: bool, skip: Path | None) -> list[Path]:
    """List the images of a folder, sorted by name."""
    return sorted(
        path
        for path in folder.glob('**/*' if recursive else '*')
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and skip not in path.resolve().parents
    )


def plan_jobs(
    images: Sequence[Path],
    out_dir: Path,
    *,
    force: bool,
    confidence: bool = False,
    overlays: bool = True,
    tiffs: bool = False,
) -> list[Job]:
    """Choose the files of each image's results.

    In ``overlays``, ``labels`` and ``confidence``, results have the paths of the images
    relative to their common folder, so that images of the same name stay apart. The
    suffix is kept if images differ in nothing else: ``street.jpg.png``.

    Args:
        images: without duplicates.
        out_dir: folder of all results.
        force: whether existing results may be overwritten.
        confidence: whether the labels' probabilities are written.
        overlays: whether overlays are written.
        tiffs: whether results of TIFFs are TIFFs; results are PNG files otherwise.

    Raises:
        FileExistsError: results exist, without ``force``.
        ValueError: a result would overwrite one of the images.
    """
    paths = [Path(os.path.abspath(image)) for image in images]
    shared = os.path.commonpath([path.parent for path in paths])
    names = [path.relative_to(shared) for path in paths]
    # Some file systems ignore case.
    stems = Counter(str(name.with_suffix('')).lower() for name in names)
    jobs = []
    for image, name in zip(images, names, strict=True):
        is_unique = stems[str(name.with_suffix('')).lower()] == 1
        suffix = '.tif' if tiffs and is_tiff(image) else '.png'
        name = Path(f'{name.with_suffix("") if is_unique else name}{suffix}')
        overlay, labels, probabilities = (
            out_dir / kind / name for kind in ('overlays', 'labels', 'confidence')
        )
        jobs.append(
            Job(
                image,
                overlay if overlays else None,
                labels,
                probabilities if confidence else None,
            )
        )
    check_targets(jobs, force)
    return jobs


def check_targets(jobs: Sequence[Job], force: bool) -> None:
    """Check that no image is overwritten, and no other file without ``force``."""
    targets = [path for job in jobs for path in job.targets]
    images = {job.image.resolve() for job in jobs}
    for path in targets:
        if path.resolve() in images:
            raise ValueError(
                f'--out-dir: the result {path} would overwrite the image of that name; '
                'give another folder'
            )
    taken = [
        str(one)
        for path in targets
        for one in (path, part_of(path))
        if one.exists() and (one == path or is_tiff(path))
    ]
    if taken and not force:
        raise FileExistsError(
            f'--out-dir: {len(taken)} of the {len(targets)} result files exist already '
            f'({some(taken)}); give another folder, or --force to overwrite them'
        )
