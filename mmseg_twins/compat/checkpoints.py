"""Lets mmengine's checkpoints load with ``weights_only=True``, and safetensors at all.

PyTorch 2.6 and later refuse classes that a checkpoint names and that nobody has
allowed. mmengine's checkpoints hold training curves as HistoryBuffer objects with
numpy arrays. These are allowed here; what else a file asks for stays refused. Files
that mmengine downloads are read by the same rule, which its own call leaves out.

mmengine reads what ``torch.load`` reads; a loader for local ``.safetensors`` files is
added to its own table of loaders.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pickle import UnpicklingError

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, checkpoint
from safetensors.torch import load_file
from torch.hub import load_state_dict_from_url

STATISTICS = ('min', 'max', 'mean', 'current')


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


def allow_mmengine_classes() -> None:
    """Adds what mmengine's checkpoints hold to PyTorch's list of safe globals."""
    multiarray = np._core.multiarray if hasattr(np, '_core') else np.core.multiarray
    functions = ('_reconstruct', 'scalar')
    dtypes = [
        value
        for value in vars(np.dtypes).values()
        if isinstance(value, type) and issubclass(value, np.dtype)
    ]
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            (statistic, 'builtins.getattr'),
            np.ndarray,
            np.dtype,
            *dtypes,
            # numpy 1 and 2 write these under different module names.
            *(
                (getattr(multiarray, name), f'numpy.{core}.multiarray.{name}')
                for core in ('core', '_core')
                for name in functions
            ),
        ]
    )


def restrict_downloads() -> None:
    """Lets mmengine read what it downloads with ``weights_only=True`` as well.

    ``torch.hub.load_state_dict_from_url``, which it calls, allows anything by default.
    """
    checkpoint.load_url = functools.partial(load_state_dict_from_url, weights_only=True)


def load_safetensors(filename: str, map_location=None) -> dict:
    """Reads a ``.safetensors`` file as a checkpoint that has weights only."""
    device = map_location if isinstance(map_location, (str, torch.device)) else 'cpu'
    return {'state_dict': load_file(filename, device=str(device))}


def register_safetensors() -> None:
    """Lets ``init_cfg``, ``load_from`` and mim name a ``.safetensors`` file."""
    # mmengine matches this from the start of the name and before its own loader of
    # local files, whose pattern is empty.
    CheckpointLoader.register_scheme(
        prefixes=r'(?!https?://).*\.safetensors$', loader=load_safetensors, force=True
    )
