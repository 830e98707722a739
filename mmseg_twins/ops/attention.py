"""Attention of queries to keys and values, by the fastest of three ways.

``scaled_dot_product_attention`` is fused, and the way for all but one case: training
in half precision on a CPU. There the fused kernel's backward pass (PyTorch 2.13) takes
up to six times as long as plain products and a softmax, most of all for windows. Where
the attention weights are many they are not kept, but computed again in the backward
pass, a chunk of queries at a time, as the fused kernel does it.

For a gradient ``dy`` of ``y = W v`` with ``W = softmax(q k')``, each chunk of queries
adds its part to::

    dv = W' dy      ds = W * (dW - sum of W * dW) with dW = dy v'      dq = ds k
                    dk = ds' q
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Attention weights of a head, up to which keeping them for the backward pass is cheap.
SMALL_ATTENTION = 2**16
# Bytes of attention weights in a chunk of queries.
CHUNK = 2**22


def attend(q: Tensor, k: Tensor, v: Tensor, dropout_rate: float) -> Tensor:
    """Attention of queries to keys and values.

    Args:
        q: queries, (B, heads, L, C / heads).
        k: keys, (B, heads, M, C / heads).
        v: values, of the keys' shape.
        dropout_rate: share of attention weights that are dropped.

    Returns:
        (B, heads, L, C / heads).
    """
    if is_half_precision_training(q):
        if q.shape[2] * k.shape[2] <= SMALL_ATTENTION:
            weights = (scaled(q) @ k.transpose(-2, -1)).softmax(-1)
            return F.dropout(weights, dropout_rate) @ v
        if not dropout_rate:
            return _ChunkedAttention.apply(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_rate)


def is_half_precision_training(q: Tensor) -> bool:
    """Whether the fused kernel is the slower way for these queries."""
    return (
        q.device.type == 'cpu'
        and q.dtype in (torch.bfloat16, torch.float16)
        and q.requires_grad
        and not torch.compiler.is_compiling()
    )


def scaled(x: Tensor) -> Tensor:
    """Queries or keys over the root of their length."""
    return x * x.shape[-1] ** -0.5


class _ChunkedAttention(torch.autograd.Function):
    """Tensors as in :func:`attend`; keeps q, k and v."""

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
    @once_differentiable
    def backward(ctx, dy):
        q, k, v = ctx.saved_tensors
        dq = empty_tokens(q)
        # Sums over chunks are kept in float32.
        dk, dv = (torch.zeros_like(x, dtype=torch.float32) for x in (k, v))
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
    """Queries in a chunk, given the keys."""
    b, heads, length, _ = k.shape
    return max(CHUNK // (b * heads * length * k.itemsize), 1)


def empty_tokens(like: Tensor) -> Tensor:
    """(B, heads, L, d), in memory (B, L, heads, d), as tokens are."""
    return torch.empty_like(
        like.transpose(1, 2), memory_format=torch.contiguous_format
    ).transpose(1, 2)
