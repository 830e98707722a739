"""Attention of queries to keys and values.

``scaled_dot_product_attention`` is fused, and the portable version. On a CPU there is
one case in which it is slow: training in half precision, where the fused kernel's
backward pass (PyTorch 2.13) takes up to six times as long as plain products and a
softmax, most of all for windows. If there are many attention weights, the CPU version
does not keep them; it recomputes them in the backward pass, a chunk of queries at a
time, as the fused kernel does.

On an accelerator, large numbers of samples (such as the windows of a large map) are
passed to the kernel in chunks, because it cannot handle them at once.

For a gradient ``dy`` of ``y = W v`` with ``W = softmax(q k')``, each chunk of queries
adds its part to::

    dv = W' dy      ds = W * (dW - sum of W * dW) with dW = dy v'      dq = ds k
                    dk = ds' q
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .differentiation import differentiable_gradients
from .tracing import is_open, is_traced, is_transformed

# Maximum number of heads of all samples in a kernel on an accelerator: CUDA's attention
# kernels use a grid dimension of this maximum size for samples or their heads.
MAX_HEADS = 2**16 - 1
# Maximum number of attention weights per head that are kept for the backward pass.
SMALL_ATTENTION = 2**16
# Bytes of attention weights in a chunk of queries.
CHUNK = 2**22


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute attention as products and a softmax, differentiable any number of times.

    Tensors are as in :func:`mmseg_twins.ops.attention`.
    """
    return (scaled(q) @ k.transpose(-2, -1)).softmax(-1) @ v


def scaled(x: Tensor) -> Tensor:
    """Divide queries or keys by the root of their length."""
    return x * x.shape[-1] ** -0.5


def portable(q: Tensor, k: Tensor, v: Tensor, dropout_rate: float) -> Tensor:
    """Compute :func:`plain` with dropout, by PyTorch's fastest kernel."""
    if not torch.compiler.is_compiling() and is_transformed() and not dropout_rate:
        return plain(q, k, v)  # fused kernels have no second derivative
    out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_rate)
    if out.requires_grad and not dropout_rate and not is_traced():
        node = out.grad_fn
        if node is not None and node.name().startswith('ScaledDotProduct'):
            node.register_hook(_differentiate_plainly)
    return out


def in_chunks(q: Tensor, k: Tensor, v: Tensor, dropout_rate: float) -> Tensor:
    """Compute :func:`portable` for at most ``MAX_HEADS`` heads at once.

    A program that ``torch.export`` records for any number of samples is not chunked.
    """
    samples, heads = q.shape[:2]
    if is_open(samples) and torch.compiler.is_exporting():
        return portable(q, k, v, dropout_rate)
    chunk = max(MAX_HEADS // heads, 1)
    if samples <= chunk:
        return portable(q, k, v, dropout_rate)
    parts = zip(q.split(chunk), k.split(chunk), v.split(chunk), strict=True)
    outputs = [portable(*part, dropout_rate=dropout_rate) for part in parts]
    # Joined as (samples, L, heads, C / heads), as tokens are in memory.
    return torch.cat([out.transpose(1, 2) for out in outputs]).transpose(1, 2)


def _differentiate_plainly(gradients: tuple, gradients_of_results: tuple):
    """Replace the gradients of a fused kernel where they are to be differentiated."""
    if not torch.is_grad_enabled():
        return None
    node = torch._C._current_autograd_node()
    inputs = (node._saved_query, node._saved_key, node._saved_value)
    count = len(inputs)
    new = differentiable_gradients(plain, inputs, gradients_of_results[0])
    # What nobody asked for is None, and has to stay so.
    asked = [
        None if old is None else x
        for old, x in zip(gradients[:count], new, strict=True)
    ]
    return (*asked, *gradients[count:])


def is_faster_on_cpu(q: Tensor, k: Tensor, dropout_rate: float) -> bool:
    """Return whether the CPU version is faster, and supports the dropout."""
    return (
        q.dtype in (torch.bfloat16, torch.float16)
        and q.requires_grad
        and not dropout_rate
    )


def on_cpu(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute :func:`plain` without keeping large attention weights."""
    if q.shape[2] * k.shape[2] <= SMALL_ATTENTION:
        return plain(q, k, v)
    return _ChunkedAttention.apply(q, k, v)


class _ChunkedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v):
        ctx.save_for_backward(q, k, v)
        out = empty_tokens(q)
        rows = rows_of_chunk(k)
        keys, v = scaled(k).transpose(-2, -1).contiguous(), v.contiguous()
        for q_part, out_part in zip(q.split(rows, 2), out.split(rows, 2), strict=True):
            out_part.copy_((q_part @ keys).softmax(-1) @ v)
        return out

    @staticmethod
    def backward(ctx, dy):
        q, k, v = ctx.saved_tensors
        if torch.is_grad_enabled():
            return differentiable_gradients(plain, (q, k, v), dy)
        dq = empty_tokens(q)
        # Sums over chunks are kept in float32 at least.
        dtype = torch.promote_types(k.dtype, torch.float32)
        dk, dv = (torch.zeros_like(x, dtype=dtype) for x in (k, v))
        rows = rows_of_chunk(k)
        keys, values = scaled(k).contiguous(), v.transpose(-2, -1).contiguous()
        keys_t = keys.transpose(-2, -1).contiguous()
        parts = zip(*(x.split(rows, 2) for x in (q, dy, dq)), strict=True)
        for q_part, dy_part, dq_part in parts:
            weights = (q_part @ keys_t).softmax(-1)
            dv += weights.transpose(-2, -1) @ dy_part
            dscores = torch._softmax_backward_data(
                dy_part @ values, weights, -1, weights.dtype
            )
            dq_part.copy_(dscores @ keys)
            dk += dscores.transpose(-2, -1) @ q_part
        return dq, scaled(dk).to(k.dtype), dv.to(v.dtype)


def rows_of_chunk(k: Tensor) -> int:
    """Return how many queries a chunk has, given the keys."""
    b, heads, length, _ = k.shape
    return max(CHUNK // (b * heads * length * k.itemsize), 1)


def empty_tokens(like: Tensor) -> Tensor:
    """Return (B, heads, L, d), in memory (B, L, heads, d), as tokens are."""
    return torch.empty_like(
        like.transpose(1, 2), memory_format=torch.contiguous_format
    ).transpose(1, 2)
