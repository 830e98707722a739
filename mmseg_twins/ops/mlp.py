r"""The MLP of a block, computed so that its hidden activations stay in the cache.

An MLP widens C channels to four or eight times as many and narrows them again. In the
first stages that is a tensor of tens of megabytes, which a CPU writes to memory and
reads back around every GELU, and which training keeps twice. Tokens do not see each
other here, so the MLP can take them a chunk at a time: the products are the same, and
a chunk's hidden activations never leave the processor's cache. Training keeps the
tokens alone and computes a chunk's hidden activations again in the backward pass.

For a gradient ``dy`` of ``y = gelu(h) W2' + b2`` with ``h = x W1' + b1``, each chunk
adds its part to::

    dW2 = dy' gelu(h)      dh = gelu'(h) * (dy W2)      dW1 = dh' x
    db2 = sum of dy        dx = dh W1                   db1 = sum of dh
"""

from __future__ import annotations

import torch
from mmcv.cnn import Linear
from mmcv.cnn.bricks.transformer import FFN
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Bytes of hidden activations: of a chunk, and from how many on chunks are faster. A
# chunk has to fit the cache that a core has for itself, or nearly so.
CHUNK = 2**21
CHUNKED_FROM = 2**24


class MLP(FFN):
    """mmcv's ``FFN`` with GELU: same parameters, names and results, less traffic.

    With dropout, on other devices than a CPU, under a compiler, with a layer that was
    replaced, or where the hidden activations are few, mmcv's layers run by themselves.

    Args:
        embed_dims: channels, C.
        hidden_dims: channels between the two linear layers.
        drop_rate: dropout rate after each of them.
    """

    def __init__(
        self, embed_dims: int, hidden_dims: int, *, drop_rate: float = 0.0
    ) -> None:
        super().__init__(
            embed_dims,
            hidden_dims,
            act_cfg=dict(type='GELU'),
            ffn_drop=drop_rate,
            add_identity=False,
        )
        self.drop_rate = drop_rate

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        first, second = self.layers[0][0], self.layers[1]
        plain = type(first) is type(second) is Linear
        if (self.training and self.drop_rate) or not plain or not pays(x, first):
            # All that FFN.forward does here. Itself it is wrapped in a check of its
            # arguments' names, which PyTorch 2.6 does not compile.
            return self.layers(x)
        parameters = (first.weight, first.bias, second.weight, second.bias)
        if torch.is_autocast_enabled('cpu'):
            dtype = torch.get_autocast_dtype('cpu')
            x, *parameters = (tensor.to(dtype) for tensor in (x, *parameters))
        with torch.autocast('cpu', enabled=False):
            return _ChunkedMLP.apply(x.flatten(0, -2), *parameters).view_as(x)


def pays(x: Tensor, widening: Linear) -> bool:
    """Whether chunks are faster for tokens x, (..., C), that a layer widens."""
    if x.device.type != 'cpu' or torch.compiler.is_compiling():
        return False
    autocast = torch.is_autocast_enabled('cpu')
    dtype = torch.get_autocast_dtype('cpu') if autocast else x.dtype
    size = x.shape[:-1].numel() * widening.out_features * dtype.itemsize
    return size >= CHUNKED_FROM


def rows_of_chunk(w1: Tensor) -> int:
    """Tokens in a chunk, given the widening layer's weight."""
    return max(CHUNK // (len(w1) * w1.itemsize), 1)


class _ChunkedMLP(torch.autograd.Function):
    """x (N, C), W1 (hidden, C), b1, W2 (C, hidden), b2 to (N, C)."""

    @staticmethod
    def forward(ctx, x, w1, b1, w2, b2):
        ctx.save_for_backward(x, w1, b1, w2)
        y = x.new_empty(len(x), len(w2))
        rows = rows_of_chunk(w1)
        for x_part, y_part in zip(x.split(rows), y.split(rows), strict=True):
            hidden = torch.ops.aten.gelu_(torch.addmm(b1, x_part, w1.T))
            torch.addmm(b2, hidden, w2.T, out=y_part)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, w1, b1, w2 = ctx.saved_tensors
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
    """Adds ``a @ b`` to ``total``, whose type may be wider."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b
