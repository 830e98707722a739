"""The versions of attention agree, and are chosen where they are fast."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmseg_twins import ops

module = sys.modules['mmseg_twins.ops.attention']
DTYPES = [torch.bfloat16, torch.float16]


def make(queries: int, keys: int) -> list[Tensor]:
    """Make queries, keys and values in float64, laid out as projections leave them."""
    return [
        torch.randn(2, n, 3, 8, dtype=torch.float64).transpose(1, 2)
        for n in (queries, keys, keys)
    ]


def with_gradients(function, inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The result in a type, and the gradients of queries, keys and values."""
    inputs = [x.detach().to(dtype).requires_grad_() for x in inputs]
    out = function(*inputs)
    gradient = torch.linspace(-1, 1, out.numel(), dtype=torch.float64)
    out.backward(gradient.view(out.shape).to(dtype))
    return [out.detach(), *(x.grad for x in inputs)]


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def plainly(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ops.attention(q, k, v)


# Few weights, which are kept; many, whose chunks do not divide the queries evenly.
@pytest.mark.parametrize(('queries', 'keys'), [(60, 3), (1030, 256)])
@pytest.mark.parametrize('dtype', DTYPES)
def test_half_precision_training_is_as_precise_as_the_fused_kernel(
    dtype, queries, keys, monkeypatch
):
    monkeypatch.setattr(module, 'CHUNK', 100 * 2 * 3 * keys * 2)
    inputs = make(queries, keys)
    truth = with_gradients(fused, inputs, torch.float64)
    for got, by_kernel, true in zip(
        with_gradients(plainly, inputs, dtype),
        with_gradients(fused, inputs, dtype),
        truth,
        strict=True,
    ):
        assert (got - true).norm() < 2 * (by_kernel - true).norm()
        assert (got - true).norm() < 0.02 * true.norm()


@pytest.mark.parametrize(
    ('dtype', 'keys', 'way'),
    [
        (torch.bfloat16, 3, 'UnsafeView'),
        (torch.bfloat16, 1000, '_ChunkedAttention'),
        (torch.float32, 3, 'Flash'),
        (torch.float32, 1000, 'Flash'),
    ],
)
def test_the_fused_kernel_serves_all_but_half_precision_training(dtype, keys, way):
    q, k, v = (x.to(dtype).requires_grad_() for x in make(600, keys))
    assert way in type(ops.attention(q, k, v).grad_fn).__name__
    with torch.no_grad():
        q, k, v = (x.detach() for x in (q, k, v))
        assert torch.equal(ops.attention(q, k, v), fused(q, k, v))


def test_chunks_keep_nothing_but_queries_keys_and_values():
    q, k, v = (x.bfloat16().requires_grad_() for x in make(600, 1000))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.append(x.numel()) or x, lambda x: x
    ):
        ops.attention(q, k, v)
    assert sorted(kept) == sorted(x.numel() for x in (q, k, v))


@pytest.mark.parametrize('keys', [1000, 100_000])
def test_half_precision_training_drops_attention_weights(keys):
    q = torch.zeros(1, 1, 4, 8, dtype=torch.bfloat16, requires_grad=True)
    v = torch.ones(1, 1, keys, 8, dtype=torch.bfloat16)
    out = ops.attention(q, torch.zeros_like(v), v, 0.5)
    assert (out - 1).abs().max() > 1e-3
    assert (out.mean() - 1).abs() < 0.2
