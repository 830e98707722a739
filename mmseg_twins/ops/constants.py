"""Tensors of constant numbers, which are copied to an accelerator once."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from .tracing import is_traced

# Number of tensors that are cached.
CACHE_SIZE = 64


def constant(values: Sequence[float], dtype: torch.dtype, like: Tensor) -> Tensor:
    """Return numbers as a tensor on the device of another one.

    Copying numbers to an accelerator waits for all of its pending work, so the tensor
    is cached. Do not write to it.

    Args:
        values: the numbers.
        dtype: type of the result.
        like: a tensor on the device.

    Returns:
        (len(values),).
    """
    make = _make if is_traced() else _cached
    return make(tuple(float(value) for value in values), dtype, like.device)


def _make(values, dtype, device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


@functools.lru_cache(maxsize=CACHE_SIZE)
def _cached(values, dtype, device) -> Tensor:
    # A tensor made in inference mode could not take part in training later.
    with torch.inference_mode(False), torch.no_grad():
        return _make(values, dtype, device)
