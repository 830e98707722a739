"""Writes checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .atomic import replacing
from .reading import META
from .unpickling import first_cause

SUFFIXES = ('.pth', '.safetensors')


def write_checkpoint(
    path: Path, state: Mapping[str, Tensor], meta: Mapping, *, force: bool
) -> None:
    """Writes ``meta`` and ``state_dict``.

    A ``.safetensors`` file has the tensors, and ``meta`` as JSON in its header.

    Args:
        path: the file, ending in ``.pth`` or ``.safetensors``.
        state: tensors by name.
        meta: plain Python values.
        force: whether a file that is there may be replaced.

    Raises:
        OSError: it could not be written; what was there before still is.
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
    except FileExistsError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        cause = first_cause(error)
        if not isinstance(cause, Exception):  # an interruption
            raise cause from None
        reason = getattr(cause, 'strerror', None) or ' '.join(str(cause).split())
        raise OSError(
            f'{path} could not be written ({reason}); nothing was changed'
        ) from None


def with_own_memory(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies those tensors that are a part of a larger memory, or share theirs.

    A file would hold all of that memory otherwise.
    """
    result, seen = {}, set()
    for name, tensor in state.items():
        storage = tensor.untyped_storage()
        size = tensor.numel() * tensor.element_size()
        if storage.nbytes() != size or storage.data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(storage.data_ptr())
        result[name] = tensor
    return result
