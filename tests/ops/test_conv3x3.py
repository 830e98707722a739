"""Winograd's convolution against PyTorch's."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from mmseg_twins import ops
from mmseg_twins.models.conv2d import Conv2d
from mmseg_twins.ops.conv3x3 import (
    STRIP,
    in_graph,
    winograd,
    winograd_weight_gradient,
)

module = sys.modules['mmseg_twins.ops.conv3x3']


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


@pytest.fixture
def always(monkeypatch):
    """Winograd's algorithm whatever the numbers of channels and pixels."""
    monkeypatch.setattr(module, 'MIN_CHANNELS', 1)
    monkeypatch.setattr(module, 'MIN_PIXELS', 1)


@settings(max_examples=60, deadline=None)
@given(
    b=st.integers(1, 3),
    c=st.integers(1, 5),
    o=st.integers(1, 5),
    h=st.integers(1, 13),
    w=st.integers(1, 13),
    strip=st.sampled_from([1, 4000, STRIP]),
)
def test_winograd_equals_the_convolution_at_any_size(b, c, o, h, w, strip):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, 'STRIP', strip)
        x, weight, gradient = random(b, c, h, w), random(o, c, 3, 3), random(b, o, h, w)
        expected = F.conv2d(x, weight, padding=1)
        got = winograd(x.detach(), weight.detach())
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
        (dweight,) = torch.autograd.grad(expected, weight, gradient)
        got = winograd_weight_gradient(x.detach(), gradient.detach())
        torch.testing.assert_close(got, dweight, rtol=1e-11, atol=1e-11)


@settings(max_examples=60, deadline=None)
@given(
    b=st.integers(1, 3),
    c=st.integers(1, 5),
    o=st.integers(1, 5),
    h=st.integers(1, 13),
    w=st.integers(1, 13),
    with_bias=st.booleans(),
)
def test_the_version_for_graphs_equals_the_convolution(b, c, o, h, w, with_bias):
    x, weight = random(b, c, h, w), random(o, c, 3, 3)
    bias = random(o) if with_bias else None
    expected = F.conv2d(x, weight, bias, padding=1)
    got = in_graph(x, weight, bias)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ('choice', 'channels', 'side', 'expected'),
    [
        ('graph', 128, 32, True),
        ('graph', 127, 32, False),
        ('graph', 128, 31, False),
        ('portable', 128, 32, False),
    ],
)
def test_graphs_get_their_version_where_it_pays(
    monkeypatch, choice: str, channels: int, side: int, expected: bool
):
    calls = []
    monkeypatch.setattr(module, 'in_graph', lambda *args: calls.append(args))
    x, weight = (
        torch.zeros(1, channels, side, side),
        torch.zeros(channels, channels, 3, 3),
    )

    with ops.use(choice):
        ops.conv3x3(x, weight)

    assert bool(calls) == expected


@pytest.mark.parametrize(
    'memory_format', [torch.contiguous_format, torch.channels_last]
)
def test_the_layer_is_pytorchs_with_its_gradients(always, memory_format):
    ours, theirs = Conv2d(5, 4, 3, padding=1).double(), nn.Conv2d(5, 4, 3, padding=1)
    theirs.double().load_state_dict(ours.state_dict())
    x = random(2, 5, 7, 10).detach().contiguous(memory_format=memory_format)
    x.requires_grad_()
    results = []
    for layer in (ours, theirs):
        out = layer(x)
        wanted = (x, *layer.parameters())
        results.append([out, *torch.autograd.grad(out.sin().sum(), wanted)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_float32_is_as_near_to_float64_as_pytorchs():
    x, weight = random(1, 128, 34, 33).detach(), random(128, 128, 3, 3).detach() / 34
    exact = F.conv2d(x, weight, padding=1)
    x, weight = x.float(), weight.float()
    versions = (winograd, in_graph, lambda x, weight: F.conv2d(x, weight, padding=1))
    *errors, pytorchs = [(f(x, weight) - exact).norm() for f in versions]
    assert max(errors) < 2 * pytorchs


def used(layer: nn.Module, x: Tensor) -> bool:
    """Whether a layer computes by Winograd's algorithm."""
    return 'Winograd' in type(layer(x).grad_fn).__name__


@pytest.mark.parametrize(
    'setting',
    [
        dict(kernel_size=1),
        dict(kernel_size=3),
        dict(kernel_size=3, padding=1, stride=2),
        dict(kernel_size=3, padding=1, groups=2),
        dict(kernel_size=3, padding=2, dilation=2),
        dict(kernel_size=3, padding=1, padding_mode='reflect'),
    ],
)
def test_other_convolutions_are_pytorchs_own(always, setting):
    layer = Conv2d(4, 4, bias=False, **setting)
    x = random(1, 4, 9, 9, dtype=torch.float32)
    assert not used(layer, x)
    expected = nn.Conv2d.forward(layer, x)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)


def test_half_precision_is_pytorchs_own(always):
    layer = Conv2d(4, 4, 3, padding=1, bias=False)
    x = random(1, 4, 9, 9, dtype=torch.float32)
    assert used(layer, x)
    with torch.autocast('cpu', torch.bfloat16):
        assert not used(layer, x)
    assert not used(layer.bfloat16(), x.bfloat16())


def test_few_channels_and_small_maps_are_pytorchs_own():
    wide = Conv2d(128, 128, 3, padding=1, bias=False)
    assert used(wide, random(1, 128, 32, 32, dtype=torch.float32))
    assert not used(wide, random(1, 128, 16, 16, dtype=torch.float32))
    narrow = Conv2d(64, 128, 3, padding=1, bias=False)
    assert not used(narrow, random(1, 64, 32, 32, dtype=torch.float32))


def test_a_frozen_kernel_still_passes_gradients_on(always):
    layer = Conv2d(3, 2, 3, padding=1, bias=False).double().requires_grad_(False)
    x = random(1, 3, 6, 6)
    layer(x).sum().backward()
    (expected,) = torch.autograd.grad(nn.Conv2d.forward(layer, x).sum(), x)
    torch.testing.assert_close(x.grad, expected)
