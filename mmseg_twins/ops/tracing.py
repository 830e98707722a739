"""Detect whether an operation is traced, compiled or transformed."""

from __future__ import annotations

import torch
from torch import Tensor


def is_traced() -> bool:
    """Return whether the tensors at hand stand for others, or are being recorded.

    True under ``torch.compile``, ``torch.export``, ``torch.jit.trace``, ``make_fx``,
    the transforms of ``torch.func``, forward-mode differentiation and PyTorch's mode
    for fake tensors. Hand-written
    gradients do not take part in these, and tensors that are made meanwhile are not
    worth keeping for later.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or is_transformed()
        or torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None
        or type(torch.empty(0)) is not Tensor
    )


def is_transformed() -> bool:
    """Return whether ``torch.func`` or forward-mode differentiation is at work."""
    return (
        torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )


def is_open(*sizes: int) -> bool:
    """Return whether a size stays open under ``torch.export``."""
    return any(isinstance(size, torch.SymInt) for size in sizes)
