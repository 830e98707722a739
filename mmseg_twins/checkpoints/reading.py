"""Reads checkpoint files without letting anything in them run.

PyTorch's files, in the zip format and in the one before it, are loaded with
``weights_only=True``: what they may name are PyTorch's own harmless classes and
those that real checkpoints of Twins carry beside their weights. Anything else is
refused by name, and so is what would overflow the stack or fill the memory
(:mod:`~mmseg_twins.checkpoints.screening`). safetensors files hold nothing but tensors.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.serialization import safe_globals

from .errors import ConversionError
from .screening import ZIP_MAGIC, is_archive, screen, screen_archive
from .unpickling import allow_mmengine_classes, first_cause, without_advice
from .verification import check_entries

# Keys under which training scripts put the state dict, those of averaged weights apart.
WRAPPERS = ('state_dict', 'model')
EMA_WRAPPERS = ('model_ema', 'state_dict_ema')
META = 'meta'

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
    """Reads a checkpoint.

    Args:
        path: a file of PyTorch's or in the safetensors format, whatever its name.
        use_ema: whether to take the averaged weights.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: it is a folder.
        ConversionError: it is damaged or no checkpoint, wants to run code, or has no
            state dict.
    """
    check_file(path)
    with path.open('rb') as file:
        start = file.read(16)
    meta: Mapping = {}
    if start.startswith(ZIP_MAGIC):
        check_zip(path)
        content = load_pickled(path, mmap=True)
    elif start.startswith(PICKLE_MAGIC):
        content = load_pickled(path, mmap=False)
    elif start[8:9] == SAFETENSORS_MAGIC:
        content, meta = load_safetensors(path)
    else:
        hint = '; it looks like a web page' if start.lstrip()[:1] == b'<' else ''
        raise ConversionError(
            f'{path} is no checkpoint: it is neither a file of PyTorch nor of '
            f'safetensors{hint}'
        )
    try:
        return unwrap(content, meta, use_ema)
    except ConversionError as error:
        raise ConversionError(f'{path}: {error}') from None


def check_file(path: Path) -> None:
    """Checks that there is a file with something in it."""
    if path.is_dir():
        raise IsADirectoryError(f'{path} is a folder; give a checkpoint file')
    if not path.exists():
        raise FileNotFoundError(f'there is no file {path}')
    if not path.is_file():
        raise ConversionError(f'{path} is no regular file')
    if not path.stat().st_size:
        raise ConversionError(f'{path} is empty')


def sha256(path: Path) -> str:
    """A file's SHA-256 digest, hexadecimal."""
    with path.open('rb') as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_zip(path: Path) -> None:
    """Checks that a zip archive is a checkpoint and that none of it is damaged.

    PyTorch does not compare the checksums of an archive that it maps into memory.

    Raises:
        ConversionError: it is not, or something is.
    """
    try:
        screen_archive(path)
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            damaged = archive.testzip()
    # What a damaged archive makes zipfile stumble over can be of any kind.
    except Exception as error:
        raise ConversionError(
            f'{path} is truncated or damaged ({one_line(error)}); get it anew'
        ) from None
    if damaged is not None:
        raise ConversionError(
            f'{path} is damaged: its part {damaged} does not match its checksum; get '
            'it anew'
        )
    if not any(name.rpartition('/')[2] == 'data.pkl' for name in names):
        raise ConversionError(
            f'{path} is a zip archive but no PyTorch checkpoint: it has no data.pkl'
        )


@contextmanager
def harmless_classes() -> Iterator[None]:
    """Allows what real checkpoints carry, while this file is read."""
    # HistoryBuffer and numpy's arrays and scalars, where compat has not done so yet.
    allow_mmengine_classes()
    # The official training script saves its command line.
    with safe_globals([argparse.Namespace]):
        yield


def load_pickled(path: Path, *, mmap: bool) -> object:
    """Loads a file of PyTorch's.

    Args:
        path: the file.
        mmap: whether it is a zip archive, whose tensors can stay on disk.

    Raises:
        ConversionError: it cannot be read, or asks for more than harmless classes.
    """
    with harmless_classes(), without_advice():
        try:
            screen(path)
        # Of a file that is not as PyTorch writes it, also its own errors.
        except Exception as error:
            raise damaged(path, error) from None
        try:
            return torch.load(path, map_location='cpu', weights_only=True, mmap=mmap)
        # What a damaged or hostile file makes the unpickler stumble over can be of
        # any kind.
        except Exception as error:
            refused = refused_names(path)
            if refused:
                raise ConversionError(
                    f'{path} is refused: it wants to use {", ".join(refused)}, and a '
                    'checkpoint that asks for more than tensors and plain values can '
                    'run code; nothing of it has run'
                ) from None
            raise damaged(path, error) from None


def damaged(path: Path, error: Exception) -> ConversionError:
    """What is said about a file that cannot be read."""
    return ConversionError(
        f'{path} is truncated, damaged or no checkpoint '
        f'({one_line(first_cause(error))})'
    )


def refused_names(path: Path) -> list[str]:
    """What a file's pickles name that is not allowed, without running them."""
    try:
        if is_archive(path):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        with path.open('rb') as file:
            return sorted(legacy_globals(file) - allowed_names())
    # A file that cannot be looked through is reported as damaged by the caller.
    except Exception:
        return []


def allowed_names() -> set[str]:
    """Names that PyTorch's restricted unpickler knows at the moment."""
    unpickler = torch._weights_only_unpickler
    return set(unpickler._get_allowed_globals()) | set(
        unpickler._get_user_allowed_globals()
    )


def legacy_globals(file: BinaryIO) -> set[str]:
    """All names that the complete pickles at the start of a file refer to."""
    found: set[str] = set()
    while True:
        try:
            found |= globals_of_pickle(file)
        # The tensors' bytes follow the last pickle.
        except ValueError:
            return found


def globals_of_pickle(file: BinaryIO) -> set[str]:
    """The names that the next pickle of a file refers to.

    Raises:
        ValueError: what follows is no complete pickle.
    """
    found: set[str] = set()
    strings: list[str] = []  # as they come onto the unpickler's stack
    memo: dict[int, object] = {}
    last: object = None  # what was put on the stack last, if that is a string
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ('GLOBAL', 'INST'):
            found.add('.'.join(argument.split(' ')))
        elif opcode.name == 'STACK_GLOBAL':
            found.add('.'.join(strings[-2:]))
        elif opcode.name == 'MEMOIZE':
            memo[len(memo)] = last
            continue
        elif opcode.name in ('PUT', 'BINPUT', 'LONG_BINPUT'):
            memo[argument] = last
            continue
        elif opcode.name in ('GET', 'BINGET', 'LONG_BINGET'):
            argument = memo.get(argument)
        last = argument if isinstance(argument, str) else None
        if last is not None:
            strings.append(last)
    return found


def load_safetensors(path: Path) -> tuple[dict, dict]:
    """Loads a safetensors file: its tensors, and the ``meta`` that this tool wrote.

    Raises:
        ConversionError: it is damaged.
    """
    try:
        with safe_open(path, framework='pt') as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            meta = json.loads((file.metadata() or {}).get(META, '{}'))
    # JSON that nests too deeply is a RecursionError.
    except (SafetensorError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConversionError(
            f'{path} is truncated, damaged or no safetensors file ({one_line(error)})'
        ) from None
    return tensors, meta if isinstance(meta, dict) else {}


def one_line(error: Exception) -> str:
    """The beginning of what an error says."""
    text = ' '.join(str(error).split()) or type(error).__name__
    sentence = text.split('. ')[0]
    return sentence if len(sentence) <= 160 else f'{sentence[:160]}...'


def unwrap(content: object, meta: Mapping, use_ema: bool) -> Source:
    """Finds the state dict in what a file holds.

    Args:
        content: what the file holds.
        meta: what else it says about itself, if it has no place for that in
            ``content``.
        use_ema: whether to take the averaged weights.

    Raises:
        ConversionError: there is none, or more than one, or it holds something else.
    """
    if not isinstance(content, dict):
        raise ConversionError(
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
        raise ConversionError(
            f'--use-ema: the file has no averaged weights ({" or ".join(EMA_WRAPPERS)}'
            f'); it has {listed(keys)}'
        )
    if len(wrappers) > 1:
        raise ConversionError(
            f'the file has weights under {" and ".join(wrappers)}, and there is no '
            'telling which are meant'
        )
    if not wrappers:
        if any(isinstance(value, Tensor) for value in content.values()):
            check_entries(content)
            return Source(content, None, (), meta)
        averaged = [key for key in EMA_WRAPPERS if key in content]
        hint = f'; --use-ema takes those of {averaged[0]}' if averaged else ''
        raise ConversionError(
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
