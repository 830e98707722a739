"""The operations of the models, optimized for speed.

Each operation is a module here with its derivation. It has a *portable* version in
plain PyTorch, which is correct on every device, under ``torch.compile``,
``torch.export`` with dynamic sizes, ``torch.jit.trace``, ``torch.func`` and autocast,
and in second derivatives. If measurements show a gain, there is a *CPU* version as
well. The functions below, and nothing else, choose: the CPU version for tensors on a
CPU in eager mode, the portable one for everything else.

To force the portable versions, set ``MMSEG_TWINS_OPS=portable`` in the environment or
use the context manager :func:`use`. A graph for a runtime on a CPU is traced with
``use('graph')``, which composes an operation of others if the runtime's own version is
slow.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from ..errors import SettingError
from . import attention as _attention
from . import conv3x3 as _conv3x3
from . import mlp as _mlp
from . import pyramid_conv as _pyramid_conv
from . import upsampled_cross_entropy as _cross_entropy
from . import upsampled_labels as _labels
from . import window_attention as _window_attention
from .constants import constant
from .differentiation import contiguous_gradient
from .drop_path import Kept, add_branch, draw_kept
from .open_sizes import adaptive_avg_pool, pad_to_patches
from .precision import in_autocast_type
from .tracing import is_traced
from .upsampled_labels import (
    Axis,
    Strip,
    Strips,
    Tiling,
    View,
    rows_to_hold,
    strip_labels,
)
from .window_attention import Windows, from_windows, to_windows

__all__ = [
    'Axis',
    'Kept',
    'Strip',
    'Strips',
    'Tiling',
    'View',
    'Windows',
    'adaptive_avg_pool',
    'add_branch',
    'attention',
    'constant',
    'contiguous_gradient',
    'conv3x3',
    'draw_kept',
    'from_windows',
    'in_autocast_type',
    'mlp',
    'pad_to_patches',
    'pyramid_conv3x3',
    'rows_to_hold',
    'strip_labels',
    'tiling',
    'to_windows',
    'upsampled_cross_entropy',
    'use',
    'window_attention',
]

CHOICES = ('auto', 'portable', 'graph')


def _checked(choice: str, source: str) -> str:
    if choice not in CHOICES:
        raise SettingError(f'{source}={choice!r}; give one of {", ".join(CHOICES)}')
    return choice


_default = _checked(os.environ.get('MMSEG_TWINS_OPS', 'auto'), 'MMSEG_TWINS_OPS')
_choice: ContextVar[str | None] = ContextVar('mmseg_twins.ops', default=None)


@contextmanager
def use(choice: str) -> Iterator[None]:
    """Choose the versions of all operations inside the ``with`` block.

    It acts on forward passes; a backward pass follows its forward pass.

    Args:
        choice: ``'portable'``; ``'auto'`` for the fastest version; ``'graph'`` for
            portable versions that are fast in runtimes for exported graphs on a CPU.

    Raises:
        SettingError: ``choice`` is none of these.

    Example:
        >>> from mmseg_twins import ops
        >>> with ops.use('portable'):
        ...     maps = backbone(images)
    """
    token = _choice.set(_checked(choice, 'mmseg_twins.ops.use: choice'))
    try:
        yield
    finally:
        _choice.reset(token)


def _may_use_cpu_version(*tensors: Tensor) -> bool:
    """Return whether the tensors are on a CPU, in eager mode, and nobody forbids it."""
    return (
        not is_traced()  # first: a compiler does not trace what follows
        and (_choice.get() or _default) == 'auto'
        and all(x.device.type == 'cpu' for x in tensors)
    )


def _is_for_graph() -> bool:
    # A compiler cannot read the choice.
    return (
        not torch.compiler.is_dynamo_compiling()
        and (_choice.get() or _default) == 'graph'
    )


def _is_on_accelerator(x: Tensor) -> bool:
    return x.device.type != 'cpu'


def attention(q: Tensor, k: Tensor, v: Tensor, dropout_rate: float = 0.0) -> Tensor:
    """Attend from queries to keys and values.

    Args:
        q: (B, heads, L, C / heads).
        k: (B, heads, M, C / heads).
        v: of the keys' shape.
        dropout_rate: the share of attention weights that are dropped.

    Returns:
        (B, heads, L, C / heads).
    """
    if _may_use_cpu_version(q) and _attention.is_faster_on_cpu(q, k, dropout_rate):
        return _attention.on_cpu(q, k, v)
    if _is_on_accelerator(q):
        return _attention.in_chunks(q, k, v, dropout_rate)
    return _attention.portable(q, k, v, dropout_rate)


def window_attention(
    qkv: Tensor, windows: Windows, num_heads: int, dropout_rate: float = 0.0
) -> Tensor:
    """Attend within the windows of a map; padding is never attended to.

    Args:
        qkv: queries, keys and values of the tokens of :func:`to_windows`, (..., 3 * C).
        windows: of :func:`to_windows`.
        num_heads: attention heads; divides C.
        dropout_rate: the share of attention weights that are dropped.

    Returns:
        (..., C).
    """
    if windows.is_filled:
        return _window_attention.masked(qkv, windows, num_heads, dropout_rate)
    return _window_attention.ragged(qkv, windows, num_heads, dropout_rate, attention)


def mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """Compute ``gelu(x w1' + b1) w2' + b2``.

    Args:
        x: tokens, (..., C).
        w1: (hidden, C).
        b1: (hidden,).
        w2: (C, hidden).
        b2: (C,).

    Returns:
        (..., C).
    """
    if _may_use_cpu_version(x) and _mlp.is_faster_on_cpu(x, w1):
        return _mlp.on_cpu(x, w1, b1, w2, b2)
    return _mlp.portable(x, w1, b1, w2, b2)


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute ``conv2d(x, weight, bias, padding=1)``.

    Args:
        x: (B, C, H, W).
        weight: (O, C, 3, 3).
        bias: (O,).

    Returns:
        (B, O, H, W).
    """
    if _may_use_cpu_version(x, weight) and _conv3x3.is_faster_on_cpu(x, weight):
        return _conv3x3.on_cpu(x, weight, bias)
    if _is_for_graph() and _conv3x3.is_faster_in_graph(x, weight):
        return _conv3x3.in_graph(x, weight, bias)
    return _conv3x3.portable(x, weight, bias)


def pyramid_conv3x3(
    maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, align_corners: bool
) -> Tensor:
    """Convolve maps that are upsampled to the first one and concatenated.

    Args:
        maps: (B, C_i, h_i, w_i) each; the first gives the size of the result.
        weight: the 3x3 convolution's, (O, sum of C_i, 3, 3).
        bias: (O,).
        align_corners: as in ``torch.nn.functional.interpolate``.

    Returns:
        (B, O, h_0, w_0).
    """
    if _may_use_cpu_version(weight, *maps):
        return _pyramid_conv.on_cpu(maps, weight, bias, align_corners)
    return _pyramid_conv.portable(maps, weight, bias, align_corners, conv3x3)


def upsampled_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    align_corners: bool,
    ignore_index: int = 255,
    class_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum the cross entropy of bilinearly upsampled logits over the pixels.

    Args:
        logits: (B, classes, h, w), of any floating type; bf16 and half logits are
            converted to float32.
        labels: (B, H, W), integers.
        align_corners: as in ``torch.nn.functional.interpolate``.
        ignore_index: the label of pixels that do not count.
        class_weight: (classes,).

    Returns:
        The sum of the weighted cross entropy, and the number of pixels that are
        classified correctly; ignored pixels count in neither.
    """
    arguments = (logits, labels, align_corners, ignore_index, class_weight)
    if _may_use_cpu_version(logits, labels):
        return _cross_entropy.on_cpu(*arguments)
    return _cross_entropy.portable(*arguments)


def tiling(logits: Tensor) -> Tiling:
    """Return how an image is cut into tiles, given logits of it, (..., classes)."""
    in_cache = _may_use_cpu_version(logits)
    return _labels.tiling(logits, in_cache=in_cache)
