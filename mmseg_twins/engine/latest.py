"""Find the newest intact checkpoint to resume from.

mmengine 0.10.7 takes the path in the file ``last_checkpoint`` without checking it.
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

    Candidates are the checkpoint that ``last_checkpoint`` names and those beside it
    with smaller numbers, or with larger ones if they are newer than
    ``last_checkpoint``: the run was killed before it could update that file. Other
    larger numbers belong to an earlier run. Without ``last_checkpoint``, all
    checkpoints in ``work_dir`` are candidates. A warning names each damaged checkpoint
    that is skipped.

    Returns:
        The path, or None if there is no checkpoint.

    Raises:
        CheckpointError: all checkpoints are damaged.
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
        f'no checkpoint in {work_dir} is intact ({"; ".join(damaged)}); give one with '
        'load_from=PATH resume=True, or move them away to start from scratch'
    )


def candidates(work_dir: Path) -> list[str]:
    """Return the checkpoints of a run, the preferred ones first."""
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
        # A run by epochs that was ended within an epoch has saved `iter_N.pth`.
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
    """Return a checkpoint and the others of its run, with their numbers.

    Args:
        path: the checkpoint that ``last_checkpoint`` names.
        written: when that was written, in nanoseconds; checkpoints with larger numbers
            must be newer.
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
    """Return the numbers of the files in a folder whose names are PREFIX NUMBER SUFFIX.

    Args:
        names: pairs of prefix and suffix.
    """
    matches = {file: NUMBERED.fullmatch(file.name) for file in folder.glob('*')}
    return {
        file: int(match[2])
        for file, match in matches.items()
        if match and (match[1], match[3]) in names
    }


def damage(path: str) -> str | None:
    """Return the damage of a checkpoint as the end of a sentence; None if intact.

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
        return 'is truncated or not a checkpoint'
    return None if broken is None else f'is damaged: its part {broken!r} has changed'


def digest(path: str | None) -> str:
    """Return a digest of a checkpoint's content, as the end of a sentence.

    It is made of the checksums that PyTorch's files have in the table at their end, so
    that the file need not be read again. It is empty for files of another kind.
    """
    try:
        with zipfile.ZipFile(path or '') as archive:
            parts = [(part.file_size, part.CRC) for part in archive.infolist()]
    except (OSError, zipfile.BadZipFile):
        return ''
    return f', content {zlib.crc32(repr(parts).encode()):08x}'
