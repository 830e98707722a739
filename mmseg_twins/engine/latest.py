"""Finds the checkpoint to resume from, without damaged ones.

mmengine 0.10.7 takes the path in the file ``last_checkpoint``, whatever is there.
"""

from __future__ import annotations

import logging
import re
import zipfile
import zlib
from pathlib import Path

from mmengine.logging import print_log

from ..checkpoints.downloading import is_url
from ..errors import CheckpointError

LAST = 'last_checkpoint'
NUMBERED = re.compile(r'(.*?)(\d+)(\.\w+)?')
DEFAULT_NAMES = [('iter_', '.pth'), ('epoch_', '.pth')]


def find_whole_checkpoint(work_dir: str | Path) -> str | None:
    """Find the newest intact checkpoint of a run.

    Candidates are the checkpoint that ``last_checkpoint`` names and those beside it: of
    smaller numbers, and of larger ones that were written after ``last_checkpoint``, by
    a run that was killed before it could update it. Other larger ones belong to an
    earlier run. Without such a file, all checkpoints in ``work_dir`` are candidates. A
    warning names each damaged checkpoint that is skipped.

    Returns:
        The path, or None if there is no checkpoint.

    Raises:
        CheckpointError: there are checkpoints, but each is damaged.
    """
    damaged = []
    for path in candidates(Path(work_dir)):
        problem = damage(path)
        if problem is None:
            for earlier in damaged:
                print_log(
                    f'{earlier}; resuming from an earlier checkpoint',
                    logger='current',
                    level=logging.WARNING,
                )
            return path
        damaged.append(f'{path} {problem}')
    if not damaged:
        return None
    raise CheckpointError(
        f'no checkpoint in {work_dir} is whole ({"; ".join(damaged)}); give one with '
        'load_from=PATH resume=True, or move them away to start anew'
    )


def candidates(work_dir: Path) -> list[str]:
    """Return the checkpoints of a run, those to prefer first."""
    note = work_dir / LAST
    named = note.read_text(encoding='utf-8').strip() if note.is_file() else ''
    if is_url(named):
        return [named]
    if named:
        path = Path(named)
        if not path.exists() and (work_dir / path.name).exists():
            # The folder was moved, or the run was started in another one.
            path = work_dir / path.name
        found = beside(path, note.stat().st_mtime_ns)
        # A run by epochs that was ended within one has saved `iter_N.pth`.
        kinds = [kind for kind in DEFAULT_NAMES if not path.name.startswith(kind[0])]
        earlier = numbered(path.parent, kinds) if len(kinds) == 1 else {}
    else:
        found, earlier = numbered(work_dir, DEFAULT_NAMES), {}
    return [
        str(file)
        for files in (found, earlier)
        for file in sorted(files, key=files.get, reverse=True)
    ]


def beside(path: Path, written: int) -> dict[Path, int]:
    """Return a checkpoint and its run's others, with their numbers.

    Args:
        path: the run's last checkpoint at a time.
        written: that time; files of larger numbers have to be newer.
    """
    match = NUMBERED.fullmatch(path.name)
    if match is None:
        return {path: 0}
    number = int(match[2])
    return {path: number} | {
        file: its
        for file, its in numbered(path.parent, [(match[1], match[3])]).items()
        if its < number or (its > number and file.stat().st_mtime_ns > written)
    }


def numbered(folder: Path, names: list[tuple[str, str]]) -> dict[Path, int]:
    """Return a folder's files whose names are a number between these parts."""
    matches = {file: NUMBERED.fullmatch(file.name) for file in folder.glob('*')}
    return {
        file: int(match[2])
        for file, match in matches.items()
        if match and (match[1], match[3]) in names
    }


def damage(path: str) -> str | None:
    """Return what is wrong with a checkpoint, as the end of a sentence.

    PyTorch's files are zip archives, with a table of contents at the end and checksums.
    URLs, and folders, as DeepSpeed and sharded checkpoints are, count as intact.
    """
    if is_url(path) or Path(path).is_dir():
        return None
    if not Path(path).exists():
        return 'does not exist'
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError):
        return 'is truncated or no checkpoint'
    return None if broken is None else f'is damaged: its part {broken!r} has changed'


def digest(path: str | None) -> str:
    """Return what tells a checkpoint's content from that of others.

    PyTorch's files have the checksums of their parts in the table at their end, so that
    they need not be read once more.

    Returns:
        The end of a sentence; empty for what is no file of this kind.
    """
    try:
        with zipfile.ZipFile(path or '') as archive:
            parts = [(part.file_size, part.CRC) for part in archive.infolist()]
    except (OSError, zipfile.BadZipFile):
        return ''
    return f', content {zlib.crc32(repr(parts).encode()):08x}'
