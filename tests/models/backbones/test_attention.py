"""LSA and GSA against plain versions of themselves, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmseg_twins.models.backbones.attention import GSA, LSA

# With windows of 7: smaller than a window, a window, ragged, two windows, ragged.
SIDES = (1, 5, 7, 9, 14, 16)


def masked_local_attention(lsa: LSA, x: Tensor) -> Tensor:
    """LSA as one attention over the whole map, masked to pairs in one window."""
    b, h, w, c = x.shape
    rows = torch.arange(h).div(lsa.window_size, rounding_mode='floor')
    columns = torch.arange(w).div(lsa.window_size, rounding_mode='floor')
    window = (rows[:, None] * w + columns[None, :]).flatten()
    apart = window[:, None] != window[None, :]
    qkv = lsa.qkv(x.reshape(b, h * w, c)).view(b, h * w, 3, lsa.num_heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(apart, -torch.inf).softmax(-1)
    return lsa.proj((weights @ v).transpose(1, 2).reshape(b, h, w, c))


@pytest.mark.parametrize('width', SIDES)
@pytest.mark.parametrize('height', SIDES)
def test_lsa_never_attends_to_padding(height, width):
    lsa = LSA(8, 2, 7).double()
    x = torch.randn(2, height, width, 8, dtype=torch.float64)
    torch.testing.assert_close(
        lsa(x), masked_local_attention(lsa, x), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize('window_size', [1, 2, 3, 20])
def test_lsa_takes_any_window_size(window_size):
    lsa = LSA(6, 3, window_size, qkv_bias=False).double()
    x = torch.randn(1, 7, 10, 6, dtype=torch.float64)
    torch.testing.assert_close(
        lsa(x), masked_local_attention(lsa, x), rtol=1e-12, atol=1e-12
    )


def test_lsa_has_the_gradients_of_masked_attention():
    lsa = LSA(8, 2, 7).double()
    x = torch.randn(2, 9, 16, 8, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 9, 16, 8, dtype=torch.float64)
    inputs = [x, *lsa.parameters()]
    ours = torch.autograd.grad((lsa(x) * target).sum(), inputs)
    plain = torch.autograd.grad((masked_local_attention(lsa, x) * target).sum(), inputs)
    for got, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize('qkv_bias', [True, False])
@pytest.mark.parametrize('sr_ratio', [1, 2, 4])
def test_gsa_is_multihead_attention_to_the_reduced_map(sr_ratio, qkv_bias):
    norm_cfg = dict(type='LN')
    gsa = GSA(8, 2, sr_ratio, norm_cfg=norm_cfg, qkv_bias=qkv_bias).double()
    x = torch.randn(2, 9, 6, 8, dtype=torch.float64)
    tokens = x.flatten(1, 2).transpose(0, 1)
    if sr_ratio > 1:
        reduced = gsa.sr(x.permute(0, 3, 1, 2)).flatten(2).permute(2, 0, 1)
        reduced = gsa.norm(reduced)
    else:
        reduced = tokens
    expected = gsa.attn(tokens, reduced, reduced)[0].transpose(0, 1).view(x.shape)
    torch.testing.assert_close(gsa(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('attention', ['LSA', 'GSA'])
def test_attention_dropout_acts_in_training_only(attention):
    if attention == 'LSA':
        module = LSA(8, 2, 7, attn_drop_rate=0.5)
    else:
        module = GSA(8, 2, 2, norm_cfg=dict(type='LN'), attn_drop_rate=0.5)
    x = torch.randn(1, 8, 8, 8)
    assert not torch.equal(module.train()(x), module(x))
    assert torch.equal(module.eval()(x), module(x))


@pytest.mark.parametrize('attention', ['LSA', 'GSA'])
def test_autocast_converts_the_tokens_and_each_parameter_once(attention):
    if attention == 'LSA':
        module = LSA(8, 2, 7)
    else:
        module = GSA(8, 2, 2, norm_cfg=dict(type='LN'))
    x = torch.randn(3, 9, 9, 8)
    converted = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket.__name__ == '_to_copy':
                converted.append(tuple(args[0].shape))
            return func(*args, **(kwargs or {}))

    with torch.autocast('cpu', torch.bfloat16), Watch():
        out = module(x)
    assert out.dtype == torch.bfloat16
    parameters = [p for name, p in module.named_parameters() if 'norm' not in name]
    assert sorted(converted) == sorted(tuple(t.shape) for t in (x, *parameters))
