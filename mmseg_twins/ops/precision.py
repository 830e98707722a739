"""The types and precisions that products are computed in.

PyTorch has two settings for float32 on CUDA: convolutions may use TF32 unless a user
forbids it, matrix products only where a user allows it. A convolution that is computed
as products follows the setting of convolutions, in its backward pass as well.

The settings belong to the process: products that another thread launches in the same
moment have the precision of convolutions, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .tracing import is_traced


def in_autocast_type(x: Tensor) -> Tensor:
    """Return a tensor as products take it under ``torch.autocast``.

    Autocast converts a tensor for each product by itself. What several products take,
    whole or in parts, is better converted once.
    """
    device = x.device.type  # some, such as `meta`, have no autocast
    if (
        x.dtype == torch.float64
        or not torch.amp.is_autocast_available(device)
        or not torch.is_autocast_enabled(device)
    ):
        return x
    return x.to(torch.get_autocast_dtype(device))


def constant_product(matrix: Tensor, x: Tensor, addend: Tensor | None = None) -> Tensor:
    """Compute ``matrix @ x + addend`` in the precision of convolutions.

    A graph that is traced or compiled has the precision of matrix products.

    Args:
        matrix: constant, (B, I, J).
        x: (B, J, K).
        addend: (B, I, K).

    Returns:
        (B, I, K).
    """
    if is_traced() or x.dtype.itemsize < 4:  # half precision has no settings
        return _product(matrix, x, addend)
    return _ConstantProduct.apply(matrix, x, addend)


def _product(matrix: Tensor, x: Tensor, addend: Tensor | None) -> Tensor:
    if addend is None:
        return torch.bmm(matrix, x)
    return torch.baddbmm(addend, matrix, x)


class _ConstantProduct(torch.autograd.Function):
    """Its gradient is a product of the same kind, any number of times."""

    @staticmethod
    def forward(ctx, matrix, x, addend):
        ctx.save_for_backward(matrix)
        with precision_of_convolutions():
            return _product(matrix, x, addend)

    @staticmethod
    def backward(ctx, gradient):
        (matrix,) = ctx.saved_tensors
        dx = None
        if ctx.needs_input_grad[1]:
            dx = _ConstantProduct.apply(matrix.transpose(1, 2), gradient, None)
        return None, dx, gradient if ctx.needs_input_grad[2] else None


@contextmanager
def precision_of_convolutions() -> Iterator[None]:
    """Let matrix products use TF32 on CUDA where convolutions may, and only there."""
    allowed = convolutions_use_tf32()
    if allowed == products_use_tf32():
        yield
        return
    restore = allow_tf32(allowed)
    try:
        yield
    finally:
        restore()


def convolutions_use_tf32() -> bool:
    """Return whether convolutions of float32 may use TF32 on CUDA."""
    if has_fp32_precision():
        return torch.backends.cudnn.conv.fp32_precision == 'tf32'
    return torch.backends.cudnn.allow_tf32


def products_use_tf32() -> bool:
    """Return whether matrix products of float32 may use TF32 on CUDA."""
    if has_fp32_precision():
        return torch.backends.cuda.matmul.fp32_precision == 'tf32'
    return torch.backends.cuda.matmul.allow_tf32


def allow_tf32(allowed: bool) -> Callable[[], None]:
    """Allow or forbid TF32 in matrix products; return what undoes it.

    PyTorch 2.9 has ``fp32_precision`` beside ``allow_tf32``. The latter sets both, but
    cannot be read where they disagree, and its True stands for two values: it is used
    only where the value to go back to is False.
    """
    matmul = torch.backends.cuda.matmul
    if not has_fp32_precision():
        before = torch.get_float32_matmul_precision()
        matmul.allow_tf32 = allowed
        return lambda: torch.set_float32_matmul_precision(before)
    before = matmul.fp32_precision
    if not allowed:
        matmul.fp32_precision = 'ieee'
        return lambda: setattr(matmul, 'fp32_precision', before)
    matmul.allow_tf32 = True

    def restore() -> None:
        matmul.allow_tf32 = False
        matmul.fp32_precision = before

    return restore


def has_fp32_precision() -> bool:
    """Return whether PyTorch has ``fp32_precision``, the newer of its interfaces."""
    return hasattr(torch.backends.cudnn, 'conv')
