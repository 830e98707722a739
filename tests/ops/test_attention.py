"""The versions of attention agree, and are chosen where they are fast."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

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


def heads_at_once(run) -> list[int]:
    """How many heads of all samples each call of the fused kernel has."""
    found = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if 'scaled_dot_product' in str(func):
                found.append(args[0].shape[0] * args[0].shape[1])
            return func(*args, **(kwargs or {}))

    with Watch():
        run()
    return found


@pytest.fixture
def accelerator(monkeypatch):
    """Tensors on the CPU, treated as if they were on an accelerator."""
    monkeypatch.setattr(ops, '_is_on_accelerator', lambda x: True)


@pytest.mark.parametrize('limit', [1, 3, 7, 8])
def test_chunks_of_samples_have_the_result_and_gradients_of_all_at_once(
    limit, accelerator, monkeypatch
):
    inputs = [
        x.flatten(0, 1).unflatten(0, (2, 3)).repeat(4, 1, 1, 1) for x in make(5, 4)
    ]
    expected = with_gradients(fused, inputs, torch.float64)
    monkeypatch.setattr(module, 'MAX_HEADS', limit)
    got = with_gradients(plainly, inputs, torch.float64)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    calls = heads_at_once(lambda: ops.attention(*inputs))
    assert len(calls) > 1
    assert max(calls) <= max(limit, inputs[0].shape[1])


@pytest.mark.parametrize('limit', [4, 50])
def test_chunks_of_windows_have_the_result_and_gradients_of_all_at_once(
    limit, accelerator, monkeypatch
):
    x = torch.randn(2, 20, 17, 3 * 8, dtype=torch.float64, requires_grad=True)

    def attend():
        tokens, windows = ops.to_windows(x, 7)
        out = ops.window_attention(tokens, windows, num_heads=2)
        return ops.from_windows(out, windows)

    def with_gradient():
        out = attend()
        return out, *torch.autograd.grad(out.sin().sum(), x)

    expected = with_gradient()
    calls = len(heads_at_once(attend))
    monkeypatch.setattr(module, 'MAX_HEADS', limit)
    torch.testing.assert_close(with_gradient(), expected, rtol=1e-12, atol=1e-12)
    chunks = heads_at_once(attend)
    assert max(chunks) <= limit
    assert (len(chunks) > calls) == (limit == 4)


def test_more_heads_than_a_grid_has_places_go_in_chunks(accelerator):
    q = torch.randn(40_000, 2, 1, 4)
    calls = heads_at_once(lambda: ops.attention(q, q, q))
    assert calls == [65_534, 80_000 - 65_534]


def test_tensors_on_a_cpu_go_at_once():
    q = torch.randn(40_000, 2, 1, 4)
    assert heads_at_once(lambda: ops.attention(q, q, q)) == [80_000]


@pytest.mark.parametrize('dynamic', [False, True])
def test_a_compiled_function_goes_in_chunks(dynamic, accelerator, monkeypatch):
    monkeypatch.setattr(module, 'MAX_HEADS', 7)
    compiled = torch.compile(
        plainly, backend='aot_eager', fullgraph=True, dynamic=dynamic
    )
    for samples in (9, 2, 14):
        inputs = [torch.randn(samples, 3, n, 8, dtype=torch.float64) for n in (5, 4, 4)]
        results = [with_gradients(f, inputs, torch.float64) for f in (compiled, fused)]
        torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_an_exported_program_takes_any_number_of_samples(accelerator, monkeypatch):
    monkeypatch.setattr(module, 'MAX_HEADS', 7)

    class Attention(torch.nn.Module):
        def forward(self, q, k, v):
            return ops.attention(q, k, v)

    def inputs(samples):
        return tuple(torch.randn(samples, 3, n, 8) for n in (5, 4, 4))

    samples = torch.export.Dim('samples')
    program = torch.export.export(
        Attention(), inputs(4), dynamic_shapes=({0: samples},) * 3
    )
    for count in (1, 2, 9):
        q, k, v = inputs(count)
        torch.testing.assert_close(program.module()(q, k, v), fused(q, k, v))
