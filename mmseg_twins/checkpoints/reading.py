"""Read checkpoint files without running any code in them.

PyTorch's files, in the zip and in the legacy format, are loaded with
``weights_only=True`` after :mod:`.pickles` has screened them. safetensors files hold
nothing but tensors. The format is detected from a file's first bytes, not its name.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import warnings
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
from .pickles import ZIP_MAGIC, allow_harmless_classes, allowed_names, screen

# Keys under which training scripts store the state dict, and averaged weights.
WRAPPERS = ('state_dict', 'model')
EMA_WRAPPERS = ('model_ema', 'state_dict_ema')
META = 'meta'
MAX_NAME = 128  # characters; the names of models have less than 80
PICKLE_MAGIC = (b'\x80', b'c', b'(')  # the last two: pickles in text form
# After four bytes with the lower half of the header's length: the upper half, which is
# 0 because headers are limited to 100 MB, and the first character of the header.
SAFETENSORS_MAGIC = bytes(4) + b'{'


@dataclass(frozen=True)
class Source:
    """A checkpoint's state dict.

    Attributes:
        state: tensors by name, mapped from the file where its format allows that.
        wrapper: the key that it was found under; None for a bare state dict.
        others: the file's other keys, such as ``'optimizer'``.
        meta: the entry ``meta`` that mmcv and mmengine write; empty without it.
    """

    state: Mapping[str, Tensor]
    wrapper: str | None
    others: tuple[str, ...]
    meta: Mapping


def read_source(path: Path, *, use_ema: bool = False) -> Source:
    """Read the weights of a checkpoint.

    Args:
        path: a file in PyTorch's or the safetensors format.
        use_ema: whether to take the averaged weights.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: it is a folder.
        CheckpointError: it is damaged or not a checkpoint, refers to more than tensors
            and plain values, or has no state dict.
    """
    # The official training script saves its command line.
    with safe_globals([argparse.Namespace]):
        content, meta = load(path, mmap=True)
    try:
        return unwrap(content, meta, use_ema)
    except CheckpointError as error:
        raise CheckpointError(f'{path}: {error}') from None


def read_checkpoint(path: Path, map_location=None) -> dict:
    """Read a checkpoint completely, as mmengine needs it to resume.

    Args:
        path: a file in PyTorch's or the safetensors format.
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
            f'{path} is not a checkpoint: it holds a {type(content).__name__}, not a '
            'dict with tensors'
        )
    state = dict.get(content, 'state_dict', content)
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(
            f'{path} is not a checkpoint: its state dict does not map names to tensors'
        )
    for found in (content, state):
        # A pickle can replace an OrderedDict's methods.
        if isinstance(found, OrderedDict) and vars(found).keys() - {'_metadata'}:
            raise CheckpointError(f'{path} is damaged: it overrides methods of a dict')
    if not isinstance(getattr(state, '_metadata', {}), Mapping):
        raise CheckpointError(f'{path} is damaged: its metadata is not a dict')
    return content


def load(
    path: Path, *, map_location=None, mmap: bool = False
) -> tuple[object, Mapping]:
    """Return a file's content, and the ``meta`` of a safetensors file.

    Args:
        map_location: as in ``torch.load``; None for the CPU.
        mmap: whether tensors stay on disk until they are used, where possible.
    """
    if path.is_dir():
        raise IsADirectoryError(f'{path} is a folder; give a checkpoint file')
    if not path.exists():
        raise FileNotFoundError(f'there is no file {path}')
    if not path.is_file():
        raise CheckpointError(f'{path} is not a regular file')
    kind = file_format(path, str(path))
    if kind == 'safetensors':
        tensors, meta = load_safetensors(path)
        if isinstance(map_location, (str, torch.device)):
            tensors = {name: x.to(map_location) for name, x in tensors.items()}
        return {'state_dict': tensors}, meta
    return load_pickled(path, map_location, mmap=mmap and kind == 'zip'), {}


def file_format(path: Path, name: str) -> str:
    """Return ``'zip'``, ``'pickle'`` or ``'safetensors'``.

    Args:
        name: of the file, for the message.

    Raises:
        CheckpointError: the file has none of these formats.
    """
    with path.open('rb') as file:
        start = file.read(64)
    if start[4:9] == SAFETENSORS_MAGIC:
        return 'safetensors'
    if start.startswith(ZIP_MAGIC):
        return 'zip'
    if start.startswith(PICKLE_MAGIC):
        return 'pickle'
    if not start:
        raise CheckpointError(f'{name} is empty')
    hint = '; it looks like a web page' if start.lstrip()[:1] == b'<' else ''
    raise CheckpointError(
        f'{name} is not a checkpoint: its format is neither that of PyTorch nor of '
        f'safetensors{hint}'
    )


def sha256(path: Path) -> str:
    """Return a file's SHA-256 digest, hexadecimal."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def load_pickled(path: Path, map_location, *, mmap: bool) -> object:
    """Load a file in one of PyTorch's formats.

    Raises:
        CheckpointError: it cannot be read, or refers to classes that may do harm.
    """
    allow_harmless_classes()
    names: set[str] = set()
    try:
        with without_advice():
            # PyTorch does not compare the checksums of an archive that it maps.
            names = screen(path, checksums=mmap)
            return torch.load(path, map_location or 'cpu', weights_only=True, mmap=mmap)
    # A damaged or hostile file can make the unpickler raise any exception.
    except Exception as error:
        refused = sorted(names - allowed_names())
        if refused:
            raise CheckpointError(
                f'{path} is refused: it refers to {", ".join(refused)}, and a '
                'checkpoint that refers to more than tensors and plain values can run '
                'code; none was run'
            ) from None
        raise CheckpointError(
            f'{path} is truncated, damaged or not a checkpoint '
            f'({one_line(first_cause(error))})'
        ) from None


@contextmanager
def without_advice() -> Iterator[None]:
    """Silence PyTorch's warnings about files that it reads."""
    with warnings.catch_warnings():
        # Such as about a newer pickle protocol than PyTorch writes, or about classes
        # that PyTorch calls deprecated.
        warnings.filterwarnings('ignore', module=r'torch(\.|$)')
        yield


def first_cause(error: BaseException) -> BaseException:
    """Return the first error in a chain, which PyTorch often hides."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def one_line(error: BaseException) -> str:
    """Return the first sentence of an error's message, in at most 160 characters."""
    text = ' '.join(str(error).split()) or type(error).__name__
    sentence = text.split('. ')[0].rstrip('.')
    return sentence if len(sentence) <= 160 else f'{sentence[:160]}...'


def load_safetensors(path: Path) -> tuple[dict, dict]:
    """Return the tensors of a safetensors file, and the package's ``meta``."""
    try:
        with safe_open(path, framework='pt') as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            meta = json.loads((file.metadata() or {}).get(META, '{}'))
    # JSON that is nested too deeply raises RecursionError.
    except (SafetensorError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(
            f'{path} is truncated, damaged or not a safetensors file '
            f'({one_line(error)})'
        ) from None
    return tensors, meta if isinstance(meta, dict) else {}


def unwrap(content: object, meta: Mapping, use_ema: bool) -> Source:
    """Find the state dict in a file's content.

    Args:
        meta: a safetensors file's.
        use_ema: whether to take the averaged weights.

    Raises:
        CheckpointError: there is none or more than one, or it does not map names to
            tensors.
    """
    if not isinstance(content, dict):
        raise CheckpointError(
            f'the file holds a {type(content).__name__}, not a dict with tensors'
        )
    # A pickle can override an OrderedDict's methods; these calls do not use them.
    content = dict(dict.items(content))
    wanted = EMA_WRAPPERS if use_ema else WRAPPERS
    wrappers = [key for key in wanted if isinstance(content.get(key), dict)]
    if len(wrappers) > 1:
        raise CheckpointError(
            f'the file has weights under {" and ".join(wrappers)}, and it is not clear '
            'which to read; save one of them to a file of its own'
        )
    if wrappers:
        found = content.get(META)
        return Source(
            checked_tensors(content[wrappers[0]]),
            wrappers[0],
            tuple(key_name(key) for key in content if key != wrappers[0]),
            dict(dict.items(found)) if isinstance(found, dict) else meta,
        )
    if not use_ema and any(isinstance(value, Tensor) for value in content.values()):
        return Source(checked_tensors(content), None, (), meta)
    keys = ', '.join(repr(key_name(key)[:40]) for key in list(content)[:8])
    problem = f'the file has no weights under {" or ".join(wanted)}'
    if use_ema:
        problem = f'--use-ema: the file has no averaged weights ({" or ".join(wanted)})'
    averaged = [key for key in EMA_WRAPPERS if key in content and not use_ema]
    hint = f'; --use-ema takes those of {averaged[0]}' if averaged else ''
    raise CheckpointError(f'{problem}; it has {keys or "nothing"}{hint}')


def key_name(key: object) -> str:
    """Return a key of a file as text."""
    return key if isinstance(key, str) else f'<{type(key).__name__}>'


def checked_tensors(content: dict) -> dict[str, Tensor]:
    """Return a file's state dict if it maps names to tensors with values.

    Raises:
        CheckpointError: an entry does not; the message names it.
    """
    state = {}
    for name, value in dict.items(content):
        if not isinstance(name, str):
            raise CheckpointError(
                f'the name of an entry is a {type(name).__name__}; a state dict maps '
                'names to tensors'
            )
        if len(name) > MAX_NAME or not name.isprintable():
            raise CheckpointError(
                f'an entry has a name of {len(name)} characters ({name[:20]!r}...); '
                f'names are printable and have at most {MAX_NAME}'
            )
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f'{name!r} is not a tensor but {type(value).__name__}; a state dict '
                'maps names to tensors'
            )
        # Not the tensor's own method, which an attribute of a Parameter can hide.
        state[name] = Tensor.detach(value)
        if state[name].is_meta:
            raise CheckpointError(f'{name!r} has a shape but no values (meta device)')
    return state
