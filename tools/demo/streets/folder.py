"""Writes scenes as files, in the folder layout of ADE20K."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from streets.scenes import SCENE_SIZE, make_scene

#: ADE20K's names of the two parts; their scenes come from different seeds.
SPLITS = ('training', 'validation')


def write_scenes(
    root: str | os.PathLike,
    *,
    training: int,
    validation: int,
    seed: int = 0,
    size: tuple[int, int] = SCENE_SIZE,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Make scenes and write them.

    They become ``images/training/*.jpg``, ``annotations/training/*.png``, and the
    same for ``validation``; names end with the scene's mood. As many processes as
    there are cores make them, and nothing is at ``root`` before all are written.

    Args:
        root: Folder to make; it may exist if it is empty.
        training: Number of scenes to train on.
        validation: Number of scenes held out.
        seed: Equal seeds give equal scenes.
        size: Width and height in pixels.
        progress: Called with the number of scenes written and of all.

    Raises:
        FileExistsError: There is something at ``root``.
        ValueError: A number of scenes is below 1, the seed is negative, or the
            size too small.
    """
    root = Path(root)
    counts = dict(zip(SPLITS, (training, validation), strict=True))
    for split, count in counts.items():
        if count < 1:
            raise ValueError(f'{split} is {count}: at least 1 scene is needed')
    if seed < 0:
        raise ValueError(f'seed is {seed}: it must not be negative')
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(
            f'{root} exists already, and nothing is overwritten: name another '
            'folder, or move that one away'
        )
    if min(size) < 64:
        raise ValueError(f'size is {size}: width and height must be at least 64')
    root.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f'.{root.name}-', dir=root.parent))
    jobs = [
        (split, index, (seed, part, index))
        for part, (split, count) in enumerate(counts.items())
        for index in range(count)
    ]
    try:
        with ProcessPoolExecutor(
            min(usable_cores(), len(jobs)), initializer=_use_one_core
        ) as pool:
            try:
                written = pool.map(partial(_write, unfinished, size), jobs, chunksize=4)
                for done, _ in enumerate(written, start=1):
                    if progress is not None:
                        progress(done, len(jobs))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        # Temporary folders are private, results need not be.
        unfinished.chmod(0o777 & ~_umask())
        unfinished.replace(root)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def usable_cores() -> int:
    """Count the cores that this process may use, by affinity and by cgroup."""
    cores = os.cpu_count() or 1
    if hasattr(os, 'sched_getaffinity'):
        cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path('/sys/fs/cgroup/cpu.max').read_text().split()
        return min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return cores  # no cgroup, or one without a limit


def _use_one_core() -> None:
    cv2.setNumThreads(0)


def _write(
    root: Path, size: tuple[int, int], job: tuple[str, int, tuple[int, ...]]
) -> None:
    """Make one scene, and write its picture and its annotation."""
    split, index, seed = job
    scene = make_scene(seed, size=size)
    name = f'{split}/street_{split}_{index + 1:08d}_{scene.mood}'
    image = cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR)
    _save(root / 'images' / f'{name}.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 93])
    _save(root / 'annotations' / f'{name}.png', scene.labels, [])


def _save(path: Path, pixels: np.ndarray, options: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fine, encoded = cv2.imencode(path.suffix, pixels, options)
    if not fine:
        raise OSError(f'OpenCV cannot encode {path}')
    path.write_bytes(encoded.tobytes())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
