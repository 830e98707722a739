"""The MLP in chunks against mmcv's FFN, whose parameters it has."""

from __future__ import annotations

import sys

import pytest
import torch
from mmcv.cnn.bricks.transformer import FFN
from torch import Tensor

from mmseg_twins.models.backbones.blocks import MLP

mlp = sys.modules['mmseg_twins.ops.mlp']

DIMS, HIDDEN = 6, 20


@pytest.fixture
def chunks(monkeypatch):
    """Chunks of 7 tokens, whatever the size; counts how often they are used."""
    calls = []
    function = mlp._ChunkedMLP.apply
    monkeypatch.setattr(mlp, 'CHUNKED_FROM', 0)
    monkeypatch.setattr(mlp, 'rows_of_chunk', lambda w1: 7)
    monkeypatch.setattr(
        mlp._ChunkedMLP, 'apply', lambda *args: calls.append(1) or function(*args)
    )
    return calls


def tokens(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, DIMS, dtype=dtype, requires_grad=True)


def gradients(out: Tensor, module: MLP, x: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out.sin().sum(), (x, *module.parameters()))


@pytest.mark.parametrize('shape', [(2, 3, 4), (1, 7, 1), (1, 1, 1), (1, 5, 7)])
def test_chunks_give_the_result_and_gradients_of_mmcvs_ffn(shape, chunks):
    module, x = MLP(DIMS, HIDDEN).double(), tokens(*shape)
    got, expected = module(x), FFN.forward(module, x)
    assert chunks
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)
    for a, b in zip(
        gradients(got, module, x), gradients(expected, module, x), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_chunks_are_for_many_hidden_activations_only(chunks, monkeypatch):
    monkeypatch.setattr(mlp, 'CHUNKED_FROM', 12 * HIDDEN * 8)
    module = MLP(DIMS, HIDDEN).double()
    module(tokens(1, 1, 11))
    assert not chunks
    module(tokens(1, 3, 4))
    assert chunks


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_autocast_gives_the_type_and_precision_of_mmcvs_ffn(dtype, chunks):
    module, x = MLP(DIMS, HIDDEN), tokens(2, 16, 16, dtype=torch.float32)
    exact = gradients(FFN.forward(module.double(), x.double()), module, x)
    module.float()
    with torch.autocast('cpu', torch.bfloat16, enabled=dtype == torch.bfloat16):
        got, expected = module(x), FFN.forward(module, x)
    assert chunks
    assert got.dtype == expected.dtype == dtype
    for a, b, truth in zip(
        gradients(got, module, x), gradients(expected, module, x), exact, strict=True
    ):
        assert a.dtype == torch.float32
        assert (a - truth).norm() < 1.5 * (b - truth).norm() + 1e-6 * truth.norm()


def test_dropout_goes_mmcvs_way(chunks):
    module = MLP(DIMS, HIDDEN, drop_rate=0.5).double().train()
    assert (module(tokens(1, 8, 8)) == 0).any()
    assert not chunks
    module.eval()(tokens(1, 8, 8))
    assert chunks


def test_a_replaced_layer_goes_mmcvs_way(chunks):
    class Doubled(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    module = MLP(DIMS, HIDDEN)
    before = module(tokens(1, 1, 3, dtype=torch.float32))
    assert chunks
    chunks.clear()
    module.layers[1] = Doubled(HIDDEN, DIMS)
    after = module(tokens(1, 1, 3, dtype=torch.float32))
    assert after.shape == before.shape
    assert not chunks


def test_the_backward_pass_keeps_no_hidden_activations(chunks):
    module, x = MLP(DIMS, HIDDEN).double(), tokens(1, 8, 8)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda saved: saved):
        module(x)
    assert chunks
    assert max(tensor.numel() for tensor in kept) == x.numel()
