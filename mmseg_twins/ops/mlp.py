r"""The MLP of a block, computed so that its hidden activations stay in the cache.

An MLP widens C channels to four or eight times as many and narrows them again. In the
first stages that is a tensor of tens of megabytes, which a CPU writes to memory and
reads back around every GELU, and which training keeps twice. Tokens do not interact
here, so the CPU version takes them a chunk at a time: the products are the same, and a
chunk's hidden activations never leave the processor's cache. Training keeps the input
alone and computes a chunk's hidden activations again in the backward pass.

For a gradient ``dy`` of ``y = gelu(h) W2' + b2`` with ``h = x W1' + b1``, each chunk
adds its part to::

    dW2 = dy' gelu(h)      dh = gelu'(h) * (dy W2)      dW1 = dh' x
    db2 = sum of dy        dx = dh W1                   db1 = sum of dh
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .differentiation import differentiable_gradients

# Bytes of hidden activations: of a chunk, and from how many on chunks are faster. A
# chunk has to fit the cache that a core has for itself, or nearly so.
CHUNK = 2**21
CHUNKED_FROM = 2**24


def portable(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """Compute the MLP layer by layer; see :func:`mmseg_twins.ops.mlp`."""
    return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)


def is_faster_on_cpu(x: Tensor, w1: Tensor) -> bool:
    """Return whether the hidden activations are too many for the cache."""
    return x.shape[:-1].numel() * len(w1) * compute_dtype(x).itemsize >= CHUNKED_FROM


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the type that products with ``x`` are computed in on a CPU."""
    autocast = torch.is_autocast_enabled('cpu')
    return torch.get_autocast_dtype('cpu') if autocast else x.dtype


def on_cpu(x: Tensor, *parameters: Tensor) -> Tensor:
    """Compute the MLP chunk by chunk; see :func:`mmseg_twins.ops.mlp`."""
    if torch.is_autocast_enabled('cpu'):
        dtype = compute_dtype(x)
        x = x.to(dtype)
        parameters = tuple(parameter.to(dtype) for parameter in parameters)
    with torch.autocast('cpu', enabled=False):
        return _ChunkedMLP.apply(x.flatten(0, -2), *parameters).view_as(x)


def rows_of_chunk(w1: Tensor) -> int:
    """Return how many tokens a chunk has, given the widening layer's weight."""
    return max(CHUNK // (len(w1) * w1.itemsize), 1)


class _ChunkedMLP(torch.autograd.Function):
    """x (N, C), w1 (hidden, C), b1, w2 (C, hidden), b2 to (N, C)."""

    @staticmethod
    def forward(ctx, x, w1, b1, w2, b2):
        ctx.save_for_backward(x, w1, b1, w2, b2)
        y = x.new_empty(len(x), len(w2))
        rows = rows_of_chunk(w1)
        for x_part, y_part in zip(x.split(rows), y.split(rows), strict=True):
            hidden = torch.ops.aten.gelu_(torch.addmm(b1, x_part, w1.T))
            torch.addmm(b2, hidden, w2.T, out=y_part)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, w1, b1, w2, b2 = ctx.saved_tensors
        if torch.is_grad_enabled():
            return differentiable_gradients(portable, (x, w1, b1, w2, b2), dy)
        dx = torch.empty_like(x)
        # Sums over chunks are kept in float32 at least.
        dtype = torch.promote_types(x.dtype, torch.float32)
        dw1, db1, dw2 = (torch.zeros_like(w, dtype=dtype) for w in (w1, b1, w2))
        rows = rows_of_chunk(w1)
        parts = zip(x.split(rows), dy.split(rows), dx.split(rows), strict=True)
        for x_part, dy_part, dx_part in parts:
            hidden = torch.addmm(b1, x_part, w1.T)
            add_product(dw2, dy_part.T, F.gelu(hidden))
            dh = torch.ops.aten.gelu_backward(dy_part @ w2, hidden)
            add_product(dw1, dh.T, x_part)
            db1 += dh.sum(0, dtype=dtype)
            torch.mm(dh, w1, out=dx_part)
        db2 = dy.sum(0, dtype=dtype)
        gradients = (g.to(x.dtype) for g in (dw1, db1, dw2, db2))
        return dx, *gradients


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add ``a @ b`` to ``total``, whose type may be wider."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b
