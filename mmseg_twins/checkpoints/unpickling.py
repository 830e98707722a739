"""Lets mmengine's checkpoints load with ``weights_only=True``, and safetensors at all.

PyTorch 2.6 and later refuse classes that a checkpoint names and that nobody has
allowed. mmengine's checkpoints hold training curves as HistoryBuffer objects with
numpy arrays. These are allowed here; what else a file asks for stays refused. Files
that mmengine downloads are read by the same rule, which its own call leaves out.

mmengine reads what ``torch.load`` reads; a loader for local ``.safetensors`` files is
added to its own table of loaders. Its loader of other local files is replaced by one
that looks through a file first (:mod:`.screening`) and says in a sentence what is wrong
with one that cannot be read.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from urllib.parse import urlsplit

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, checkpoint
from safetensors import SafetensorError
from safetensors.torch import load_file

from .screening import screen

STATISTICS = ('min', 'max', 'mean', 'current')
NUMBERS = 'biufc'  # numpy's kinds of types: truth values, whole, real, complex


class CheckpointError(ValueError, UnpicklingError):
    """A checkpoint file that cannot be read; the message is one sentence."""


def statistic(owner: type, name: str) -> Callable:
    """Answers the ``getattr`` by which HistoryBuffer's pickle finds its methods.

    Raises:
        UnpicklingError: anything but HistoryBuffer's own statistics is asked for.
    """
    if owner is not HistoryBuffer or name not in STATISTICS:
        raise UnpicklingError(
            f'a checkpoint asks for attribute {name!r} of {owner!r}, which is refused'
        )
    return getattr(HistoryBuffer, name)


def numeric_type(name: str, align: bool = False, copy: bool = False) -> np.dtype:
    """Answers for ``numpy.dtype`` in a pickle: one of numpy's own types of numbers.

    A copy of a type, or one of objects or structures, could be given a state that makes
    numpy take bytes of the file for pointers. numpy's own types take no state.

    Args:
        name: such as ``'f8'``.
        align: not used.
        copy: not used.

    Raises:
        UnpicklingError: it is a type of something else.
    """
    name = name.decode('ascii') if isinstance(name, bytes) else name
    dtype = np.dtype(name) if isinstance(name, str) else None
    if dtype is None or dtype.kind not in NUMBERS or not dtype.isnative:
        raise UnpicklingError(
            f'a checkpoint asks for numpy data of type {name!r}; those of numbers are '
            'read'
        )
    return np.dtype(dtype.type)


def array_class() -> None:
    """Answers for ``numpy.ndarray`` in a pickle, which names it and never calls it.

    Raises:
        UnpicklingError: it does.
    """
    raise UnpicklingError('a checkpoint calls numpy.ndarray, which is refused')


def empty_array(cls: Callable, shape: tuple, name: bytes) -> np.ndarray:
    """Answers for ``_reconstruct``, by which a pickle begins an array.

    What the array holds, and of which shape and type, comes in its state.
    """
    return np.empty(0)


def number(dtype: np.dtype, content: bytes) -> np.generic:
    """Answers for ``scalar``, by which a pickle makes one of numpy's numbers.

    Raises:
        UnpicklingError: the bytes are not those of one.
    """
    if (
        not isinstance(dtype, np.dtype)
        or dtype.kind not in NUMBERS
        or not isinstance(content, bytes)
        or len(content) != dtype.itemsize
    ):
        raise UnpicklingError('a checkpoint holds a damaged number of numpy')
    return np.frombuffer(content, dtype)[0]


def allow_mmengine_classes() -> None:
    """Adds what mmengine's checkpoints hold to PyTorch's list of safe globals."""
    functions = {'_reconstruct': empty_array, 'scalar': number}
    # States are given to objects of these classes only. The names are none that a
    # pickle can ask for, so that it cannot call the classes.
    numbers = {
        type(dtype)
        for dtype in map(np.dtype, np.typecodes['All'])
        if dtype.kind in NUMBERS
    }
    stateful = [np.ndarray, *numbers]
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            (statistic, 'builtins.getattr'),
            (numeric_type, 'numpy.dtype'),
            (array_class, 'numpy.ndarray'),
            *((kind, f'{kind.__name__}\n') for kind in stateful),
            # numpy 1 and 2 write these under different module names.
            *(
                (function, f'numpy.{core}.multiarray.{name}')
                for core in ('core', '_core')
                for name, function in functions.items()
            ),
        ]
    )


def load_url(
    url: str,
    model_dir: str | None = None,
    map_location=None,
    progress: bool = True,
) -> dict:
    """Downloads a checkpoint, unless an earlier download is there, and reads it.

    ``torch.hub.load_state_dict_from_url``, which mmengine calls, allows anything by
    default and unpacks archives.

    Args:
        url: As in ``torch.hub.load_state_dict_from_url``, like the others.
        model_dir: See there.
        map_location: See there.
        progress: See there.

    Raises:
        OSError: It cannot be downloaded.
        CheckpointError: It cannot be read.
    """
    folder = Path(model_dir or Path(torch.hub.get_dir(), 'checkpoints'))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / Path(urlsplit(url).path).name
    if not path.exists():
        print(f'downloading {url} to {path}', file=sys.stderr)
        torch.hub.download_url_to_file(url, str(path), progress=progress)
    read = load_safetensors if path.suffix == '.safetensors' else load_local
    return read(str(path), map_location)


def restrict_downloads() -> None:
    """Lets mmengine read what it downloads by the rules for local files."""
    checkpoint.load_url = load_url


def load_safetensors(filename: str, map_location=None) -> dict:
    """Reads a ``.safetensors`` file as a checkpoint that has weights only.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It cannot be read.
    """
    filename = require_checkpoint_file(filename)
    device = map_location if isinstance(map_location, (str, torch.device)) else 'cpu'
    try:
        return {'state_dict': load_file(filename, device=str(device))}
    except (SafetensorError, ValueError, OSError, MemoryError) as error:
        raise unreadable(filename, error) from None


def load_local(filename: str, map_location=None) -> dict:
    """Reads a local file of PyTorch's, as mmengine's own loader does.

    Args:
        filename: The file.
        map_location: As in ``torch.load``.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It cannot be read, asks for more than tensors and plain values,
            or has no state dict.
    """
    filename = require_checkpoint_file(filename)
    try:
        with without_advice():
            screen(filename)
            content = torch.load(filename, map_location, weights_only=True)
    # What a damaged or hostile file makes the unpickler stumble over can be of any
    # kind.
    except Exception as error:
        raise unreadable(filename, error) from None
    if not isinstance(content, dict):
        raise CheckpointError(
            f'{filename} is no checkpoint: it holds a {type(content).__name__}, not a '
            'dict with tensors'
        )
    state = dict.get(content, 'state_dict', content)
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(
            f'{filename} is no checkpoint: what it has as state dict is no dict of '
            'tensors by name'
        )
    for found in (content, state):
        # A pickle can put something in the place of an OrderedDict's methods.
        if isinstance(found, OrderedDict) and vars(found).keys() - {'_metadata'}:
            raise CheckpointError(f'{filename} is damaged: its dict is none')
    if not isinstance(getattr(state, '_metadata', {}), Mapping):
        raise CheckpointError(f'{filename} is damaged: its metadata is no dict')
    return content


@contextmanager
def without_advice() -> Iterator[None]:
    """Leaves out what PyTorch remarks on files that it reads."""
    with warnings.catch_warnings():
        # That a pickle is of a newer protocol than PyTorch writes.
        warnings.filterwarnings('ignore', 'Detected pickle protocol')
        # PyTorch 2.7 about a call of its own.
        warnings.filterwarnings('ignore', 'TypedStorage is deprecated')
        yield


def require_checkpoint_file(filename: str) -> str:
    """The path of a file that is there.

    Raises:
        FileNotFoundError: There is none.
    """
    filename = os.path.expanduser(filename)
    if not os.path.isfile(filename):
        raise FileNotFoundError(f'{filename} can not be found.')
    return filename


def unreadable(filename: str, error: Exception) -> CheckpointError:
    """What is said about a file that cannot be read."""
    error = first_cause(error)
    text = ' '.join(str(error).split()) or type(error).__name__
    sentence = text.split('. ')[0].rstrip('.')
    sentence = sentence if len(sentence) <= 160 else f'{sentence[:160]}...'
    return CheckpointError(
        f'{filename} is truncated, damaged or no checkpoint of weights ({sentence})'
    )


def first_cause(error: BaseException) -> BaseException:
    """What an error goes back to.

    PyTorch reports what goes wrong in reading and writing under a name of its own.
    """
    while error.__context__ is not None:
        error = error.__context__
    return error


def register_safetensors() -> None:
    """Lets ``init_cfg``, ``load_from`` and mim name a ``.safetensors`` file."""
    # mmengine matches this from the start of the name and before its own loader of
    # local files, whose pattern is empty.
    CheckpointLoader.register_scheme(
        prefixes=r'(?!https?://).*\.safetensors$', loader=load_safetensors, force=True
    )


def register_local() -> None:
    """Lets mmengine read local files by :func:`load_local`."""
    CheckpointLoader.register_scheme(prefixes='', loader=load_local, force=True)
