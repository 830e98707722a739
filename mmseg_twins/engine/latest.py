"""Finds the checkpoint that a run goes on from, damaged ones left out.

mmengine 0.10.7 takes the path that stands in the file ``last_checkpoint``, whatever is
there.
"""

from __future__ import annotations

import logging
import re
import zipfile
import zlib
from pathlib import Path

from mmengine.logging import print_log

LAST = 'last_checkpoint'
NUMBERED = re.compile(r'(?P<prefix>.*?)(?P<number>\d+)(?P<suffix>\.\w+)?')
MADE_BY_DEFAULT = re.compile(r'(iter|epoch)_(\d+)\.pth')


class NoWholeCheckpointError(ValueError):
    """There are checkpoints to resume from, and none of them can be read."""


def find_whole_checkpoint(work_dir: str | Path) -> str | None:
    """Find the newest checkpoint of a run that is whole.

    It looks at the one that ``last_checkpoint`` names and at those beside it: of
    smaller numbers, and of larger ones that were written after ``last_checkpoint``, by
    a run that was killed before it could say so. Other larger ones are an earlier
    run's. Where there is no such file, it looks at all of ``work_dir``. A damaged
    checkpoint is passed over with a warning.

    Args:
        work_dir: folder of the run.

    Returns:
        The path, or None where there is no checkpoint.

    Raises:
        NoWholeCheckpointError: there are checkpoints, but each is damaged.
    """
    found = candidates(Path(work_dir))
    damaged = []
    for path in found:
        problem = damage(path)
        if problem is None:
            return path
        damaged.append(f'{path} {problem}')
        if path != found[-1]:
            print_log(
                f'{damaged[-1]}; the checkpoint before it is looked at',
                logger='current',
                level=logging.WARNING,
            )
    if not damaged:
        return None
    raise NoWholeCheckpointError(
        f'no checkpoint in {work_dir} is whole ({"; ".join(damaged)}); give one with '
        'load_from=PATH resume=True, or move them away to begin at the start'
    )


def candidates(work_dir: Path) -> list[str]:
    """List the checkpoints of a run, those to prefer first."""
    try:
        named = (work_dir / LAST).read_text(encoding='utf-8').strip()
    except FileNotFoundError:
        named = ''
    if '://' in named:
        return [named]
    if not named:
        files = [(MADE_BY_DEFAULT.fullmatch(p.name), p) for p in work_dir.glob('*.pth')]
        numbered = [(int(match[2]), str(path)) for match, path in files if match]
        return [path for _, path in sorted(numbered, reverse=True)]
    path = Path(named)
    if not path.exists() and (work_dir / path.name).exists():
        # The folder was moved, or the run was started in another one.
        path = work_dir / path.name
    return [str(file) for file in beside(path, (work_dir / LAST).stat().st_mtime_ns)]


def beside(path: Path, noted: int) -> list[Path]:
    """List ``iter_8.pth`` with the files named alike, the largest number first.

    Args:
        path: the file.
        noted: when it was noted as the last one. Files of larger numbers have to be
            newer.
    """
    name = NUMBERED.fullmatch(path.name)
    if name is None or not path.parent.is_dir():
        return [path]
    number, found = int(name['number']), [(int(name['number']), path)]
    for file in path.parent.iterdir():
        other = NUMBERED.fullmatch(file.name)
        if other and (other['prefix'], other['suffix']) == (
            name['prefix'],
            name['suffix'],
        ):
            its = int(other['number'])
            if its < number or (its > number and file.stat().st_mtime_ns > noted):
                found.append((its, file))
    return [file for _, file in sorted(found, reverse=True)]


def damage(path: str | Path) -> str | None:
    """Say what is wrong with a checkpoint.

    PyTorch's files are zip archives, whose table of contents stands at their end and
    whose parts have checksums.

    Args:
        path: a local file is read; what is a URL or a folder, as DeepSpeed and sharded
            checkpoints are, is taken to be whole.

    Returns:
        The end of a sentence that begins with the path, or None for a whole file.
    """
    if '://' in str(path) or Path(path).is_dir():
        return None
    if not Path(path).exists():
        return 'does not exist'
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError):
        return 'is truncated or no checkpoint'
    return None if broken is None else f'is damaged: its part {broken!r} has changed'
