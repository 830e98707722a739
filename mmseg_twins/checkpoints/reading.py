"""The one reader of checkpoint files; nothing in a file can run.

PyTorch's files, in the zip format and in the one before it, are loaded with
``weights_only=True`` after :mod:`.pickles` has gone through them. safetensors files
hold nothing but tensors. What a file is, its first bytes say, whatever its name.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.serialization import safe_globals

from ..errors import CheckpointError
from .pickles import (
    ZIP_MAGIC,
    allow_harmless_classes,
    allowed_names,
    screen,
    screen_archive,
)

# Keys under which training scripts put the state dict, those of averaged weights apart.
WRAPPERS = ('state_dict', 'model')
EMA_WRAPPERS = ('model_ema', 'state_dict_ema')
META = 'meta'
MAX_NAME = 128  # characters; the names of models have less than 80

# How files begin: PyTorch's since 1.6, its earlier ones, and, after the length of
# their header in eight bytes, those of safetensors.
PICKLE_MAGIC = (b'\x80', b'c', b'(')  # the last two: pickles in text form
SAFETENSORS_MAGIC = b'{'


@dataclass(frozen=True)
class Source:
    """A checkpoint's state dict.

    Attributes:
        state: tensors by name, as far as the file's format allows mapped from the file
            and not copied into memory.
        wrapper: the key that it was found under; None for a bare state dict.
        others: the file's other keys, such as ``'optimizer'``.
        meta: what mmcv and mmengine write about a checkpoint; empty without it.
    """

    state: Mapping[str, Tensor]
    wrapper: str | None
    others: tuple[str, ...]
    meta: Mapping


def read_source(path: Path, *, use_ema: bool = False) -> Source:
    """Read the weights of a checkpoint.

    Args:
        path: a file of PyTorch's or in the safetensors format.
        use_ema: whether to take the averaged weights.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: it is a folder.
        CheckpointError: it is damaged or no checkpoint, asks for more than tensors and
            plain values, or has no state dict.
    """
    # The official training script saves its command line.
    with safe_globals([argparse.Namespace]):
        content, meta = load(path, mmap=True)
    try:
        return unwrap(content, meta, use_ema)
    except CheckpointError as error:
        raise CheckpointError(f'{path}: {error}') from None


def read_checkpoint(path: Path, map_location=None) -> dict:
    """Read all of a checkpoint, as mmengine resumes from it.

    Args:
        path: a file of PyTorch's or in the safetensors format.
        map_location: as in ``torch.load``.

    Returns:
        What the file holds; the tensors of a safetensors file under ``state_dict``.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: it is a folder.
        CheckpointError: it cannot be read, or has no state dict.
    """
    content, _ = load(path, map_location=map_location)
    if not isinstance(content, dict):
        raise CheckpointError(
            f'{path} is no checkpoint: it holds a {type(content).__name__}, not a dict '
            'with tensors'
        )
    state = dict.get(content, 'state_dict', content)
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(
            f'{path} is no checkpoint: what it has as state dict is no dict of tensors '
            'by name'
        )
    for found in (content, state):
        # A pickle can put something in the place of an OrderedDict's methods.
        if isinstance(found, OrderedDict) and vars(found).keys() - {'_metadata'}:
            raise CheckpointError(f'{path} is damaged: its dict is none')
    if not isinstance(getattr(state, '_metadata', {}), Mapping):
        raise CheckpointError(f'{path} is damaged: its metadata is no dict')
    return content


def load(
    path: Path, *, map_location=None, mmap: bool = False
) -> tuple[object, Mapping]:
    """Load what a file holds.

    Args:
        path: the file.
        map_location: as in ``torch.load``; None for the CPU.
        mmap: whether tensors stay on disk until they are used.

    Returns:
        The content, and what a safetensors file says about itself.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: it is a folder.
        CheckpointError: it cannot be read.
    """
    check_file(path)
    with path.open('rb') as file:
        start = file.read(16)
    if start.startswith(ZIP_MAGIC):
        # PyTorch does not compare the checksums of an archive that it maps.
        check_zip(path, checksums=mmap)
        return load_pickled(path, map_location, mmap=mmap), {}
    if start.startswith(PICKLE_MAGIC):
        return load_pickled(path, map_location, mmap=False), {}
    if start[8:9] == SAFETENSORS_MAGIC:
        tensors, meta = load_safetensors(path)
        if isinstance(map_location, (str, torch.device)):
            tensors = {name: x.to(map_location) for name, x in tensors.items()}
        return {'state_dict': tensors}, meta
    hint = '; it looks like a web page' if start.lstrip()[:1] == b'<' else ''
    raise CheckpointError(
        f'{path} is no checkpoint: it is neither a file of PyTorch nor of '
        f'safetensors{hint}'
    )


def check_file(path: Path) -> None:
    """Check that there is a file with something in it."""
    if path.is_dir():
        raise IsADirectoryError(f'{path} is a folder; give a checkpoint file')
    if not path.exists():
        raise FileNotFoundError(f'there is no file {path}')
    if not path.is_file():
        raise CheckpointError(f'{path} is no regular file')
    if not path.stat().st_size:
        raise CheckpointError(f'{path} is empty')


def sha256(path: Path) -> str:
    """A file's SHA-256 digest, hexadecimal."""
    with path.open('rb') as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_zip(path: Path, *, checksums: bool) -> None:
    """Check that a zip archive is a checkpoint and that none of it is damaged.

    Raises:
        CheckpointError: it is not, or something is.
    """
    try:
        screen_archive(path)
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            damaged = archive.testzip() if checksums else None
    # What a damaged archive makes zipfile stumble over can be of any kind.
    except Exception as error:
        raise CheckpointError(
            f'{path} is truncated or damaged ({one_line(error)}); get it again'
        ) from None
    if damaged is not None:
        raise CheckpointError(
            f'{path} is damaged: its part {damaged} does not match its checksum; get '
            'it again'
        )
    if not any(name.rpartition('/')[2] == 'data.pkl' for name in names):
        raise CheckpointError(
            f'{path} is a zip archive but no PyTorch checkpoint: it has no data.pkl'
        )


def load_pickled(path: Path, map_location, *, mmap: bool) -> object:
    """Load a file of PyTorch's.

    Raises:
        CheckpointError: it cannot be read, or asks for more than harmless classes.
    """
    allow_harmless_classes()
    names: set[str] = set()
    try:
        with without_advice():
            names = screen(path)
            return torch.load(path, map_location or 'cpu', weights_only=True, mmap=mmap)
    # What a damaged or hostile file makes the unpickler stumble over can be of any
    # kind.
    except Exception as error:
        refused = sorted(names - allowed_names())
        if refused:
            raise CheckpointError(
                f'{path} is refused: it wants to use {", ".join(refused)}, and a '
                'checkpoint that asks for more than tensors and plain values can run '
                'code; nothing of it has run'
            ) from None
        raise CheckpointError(
            f'{path} is truncated, damaged or no checkpoint '
            f'({one_line(first_cause(error))})'
        ) from None


@contextmanager
def without_advice() -> Iterator[None]:
    """Leave out what PyTorch remarks on files that it reads."""
    with warnings.catch_warnings():
        # That a pickle is of a newer protocol than PyTorch writes.
        warnings.filterwarnings('ignore', 'Detected pickle protocol')
        # PyTorch 2.7 about a call of its own.
        warnings.filterwarnings('ignore', 'TypedStorage is deprecated')
        yield


def first_cause(error: BaseException) -> BaseException:
    """Return what an error goes back to.

    PyTorch reports what goes wrong in reading and writing under a name of its own.
    """
    while error.__context__ is not None:
        error = error.__context__
    return error


def one_line(error: BaseException) -> str:
    """Return the beginning of what an error says."""
    text = ' '.join(str(error).split()) or type(error).__name__
    sentence = text.split('. ')[0].rstrip('.')
    return sentence if len(sentence) <= 160 else f'{sentence[:160]}...'


def load_safetensors(path: Path) -> tuple[dict, dict]:
    """Load a safetensors file: its tensors, and the ``meta`` that this tool wrote.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        with safe_open(path, framework='pt') as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            meta = json.loads((file.metadata() or {}).get(META, '{}'))
    # JSON that nests too deeply is a RecursionError.
    except (SafetensorError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(
            f'{path} is truncated, damaged or no safetensors file ({one_line(error)})'
        ) from None
    return tensors, meta if isinstance(meta, dict) else {}


def unwrap(content: object, meta: Mapping, use_ema: bool) -> Source:
    """Find the state dict in what a file holds.

    Args:
        content: what the file holds.
        meta: what else it says about itself, if it has no place for that in
            ``content``.
        use_ema: whether to take the averaged weights.

    Raises:
        CheckpointError: there is none, or more than one, or it holds something else.
    """
    if not isinstance(content, dict):
        raise CheckpointError(
            f'the file holds a {type(content).__name__}, not a dict with tensors'
        )
    content = plain(content)
    keys = [name_of(key) for key in content]
    wrappers = [
        key
        for key in (EMA_WRAPPERS if use_ema else WRAPPERS)
        if isinstance(content.get(key), dict)
    ]
    if use_ema and not wrappers:
        raise CheckpointError(
            f'--use-ema: the file has no averaged weights ({" or ".join(EMA_WRAPPERS)}'
            f'); it has {listed(keys)}'
        )
    if len(wrappers) > 1:
        raise CheckpointError(
            f'the file has weights under {" and ".join(wrappers)}, and there is no '
            'telling which are meant'
        )
    if not wrappers:
        if any(isinstance(value, Tensor) for value in content.values()):
            check_entries(content)
            return Source(content, None, (), meta)
        averaged = [key for key in EMA_WRAPPERS if key in content]
        hint = f'; --use-ema takes those of {averaged[0]}' if averaged else ''
        raise CheckpointError(
            f'the file has no weights under {" or ".join(WRAPPERS)}; it has '
            f'{listed(keys)}{hint}'
        )
    state, found = plain(content[wrappers[0]]), content.get(META)
    check_entries(state)
    return Source(
        state,
        wrappers[0],
        tuple(key for key in keys if key != wrappers[0]),
        plain(found) if isinstance(found, dict) else meta,
    )


def plain(content: dict) -> dict:
    """A dict without what a pickle can put in the place of an OrderedDict's methods."""
    return dict(dict.items(content))


def name_of(key: object) -> str:
    """A key of a file, for people."""
    return key if isinstance(key, str) else f'<{type(key).__name__}>'


def listed(keys: list[str]) -> str:
    """The first keys of a file, for a message."""
    shown = (key if len(key) <= 40 else f'{key[:40]}...' for key in keys[:8])
    return ', '.join(map(repr, shown)) or 'nothing'


def check_entries(state: Mapping[str, Tensor]) -> None:
    """Check that a dict has tensors by name.

    Raises:
        CheckpointError: an entry is something else; says which.
    """
    for name, value in state.items():
        if not isinstance(name, str):
            raise CheckpointError(
                f'an entry has a {type(name).__name__} for a name; a state dict holds '
                'tensors by name'
            )
        if len(name) > MAX_NAME:
            raise CheckpointError(
                f'an entry has a name of {len(name)} characters ({name[:20]!r}...); '
                f'those of tensors have up to {MAX_NAME}'
            )
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f'{name!r} is no tensor but {type(value).__name__}; a state dict holds '
                'tensors by name'
            )
