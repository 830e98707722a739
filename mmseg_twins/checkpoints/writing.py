"""Atomic writes that never overwrite a file without ``force``."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import SettingError, WritingError
from .reading import META, first_cause

SUFFIXES = ('.pth', '.safetensors')
# The disk is full, the user's share of it is, or the file would be too large.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_checkpoint(
    path: Path, state: Mapping[str, Tensor], meta: Mapping, *, force: bool
) -> None:
    """Write ``meta`` and ``state_dict``; a safetensors file has ``meta`` as JSON.

    Args:
        path: the file, ending in ``.pth`` or ``.safetensors``.
        state: tensors by name.
        meta: plain Python values.
        force: whether an existing file may be replaced.

    Raises:
        WritingError: the disk is full; an existing file is unchanged.
        OSError: it could not be written for another reason; likewise.
    """
    state = with_own_memory(state)
    try:
        with replacing(path, force=force) as temporary:
            if path.suffix == '.safetensors':
                save_file(
                    {name: tensor.contiguous() for name, tensor in state.items()},
                    temporary,
                    metadata={'format': 'pt', META: json.dumps(meta)},
                )
            else:
                with temporary.open('wb') as file:
                    torch.save({META: dict(meta), 'state_dict': state}, file)
    except (FileExistsError, WritingError):
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        cause = first_cause(error)
        if not isinstance(cause, Exception):  # an interruption
            raise cause from None
        reason = getattr(cause, 'strerror', None) or ' '.join(str(cause).split())
        number = next((one for one in NO_ROOM if os.strerror(one) in reason), None)
        kind = OSError if number is None else WritingError
        raise kind(
            f'{path} could not be written ({reason}); nothing was changed'
        ) from None


def with_own_memory(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy views and tensors that share memory, or files would hold all of it."""
    result, seen = {}, set()
    for name, tensor in state.items():
        storage = tensor.untyped_storage()
        size = tensor.numel() * tensor.element_size()
        if storage.nbytes() != size or storage.data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(storage.data_ptr())
        result[name] = tensor
    return result


def check_writable(path: Path, *, force: bool, suffixes: Sequence[str] = ()) -> None:
    """Check that a file can be written, before a long computation of its content.

    Args:
        force: whether an existing file may be replaced.
        suffixes: allowed endings of its name, such as ``.png``; any, if empty.

    Raises:
        ValueError: its name has none of the endings.
        OSError: it is a folder or exists already, or its folder does not exist or
            cannot be written to.
    """
    if path.is_dir():
        raise IsADirectoryError(f'{path} is a folder; give the name of a file')
    if suffixes and path.suffix not in suffixes:
        endings = ' or '.join(suffixes)
        raise ValueError(f'{path} does not end in {endings}')
    if path.exists() and not force:
        raise FileExistsError(f'{path} exists already; --force replaces it')
    if not path.parent.is_dir():
        raise FileNotFoundError(f'there is no folder {path.parent}; create it first')
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OSError(
            f'the folder {path.parent} cannot be written to ({error.strerror})'
        ) from None


def check_new_folder(folder: Path, option: str) -> None:
    """Check that a folder does not exist or is empty.

    Args:
        option: the option's name, for the message.

    Raises:
        SettingError: there are files in it, or it is a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingError(
            f'{option}: {str(folder)!r} is not empty; give a new folder, so that '
            'nothing in it is overwritten'
        )


@contextmanager
def replacing(path: Path, *, force: bool) -> Iterator[Path]:
    """Yield a temporary file beside ``path`` that replaces it at the end.

    Args:
        path: the file; a link to a file stays a link.
        force: whether an existing file may be replaced. If not, a file that has been
            created in the meantime is left as it is.

    Raises:
        FileExistsError: the file exists, without ``force``.
        WritingError: the disk is full; an existing file is unchanged.
    """
    given, path = path, Path(os.path.realpath(path))
    with naming(given, 'nothing was changed'):
        handle, name = tempfile.mkstemp(
            prefix=f'.{path.name}.', suffix='.tmp', dir=path.parent
        )
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~current_umask())
            flush(temporary)
            if force:
                os.replace(temporary, path)
            else:
                place_new(temporary, path)
            flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path | str, kept: str) -> Iterator[None]:
    """Name the file in the error for a full disk; the system's error does not.

    Args:
        path: what is written in this context.
        kept: the end of the message: what is not lost.

    Raises:
        WritingError: the disk is full.
    """
    try:
        yield
    except WritingError:
        raise
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        reason = os.strerror(error.errno)
        raise WritingError(f'{path} could not be written ({reason}); {kept}') from error


def place_new(temporary: Path, path: Path) -> None:
    """Move a file to a path that does not exist yet.

    Raises:
        FileExistsError: it exists.
    """
    taken = f'{path} was created meanwhile and is left as it is; --force replaces it'
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise FileExistsError(taken) from None
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(taken) from None
        os.replace(temporary, path)


def flush(path: Path) -> None:
    """Wait until the content of a file or folder is on disk."""
    if path.is_dir() and os.name == 'nt':  # folders cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def current_umask() -> int:
    """Return the process's umask."""
    umask = os.umask(0)
    os.umask(umask)
    return umask
