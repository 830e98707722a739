"""A convolution at each map's own resolution against the plain one."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mmseg_twins import ops
from mmseg_twins.ops import pyramid_conv
from mmseg_twins.ops.pyramid_conv import on_cpu, portable

# Sides of the first map and of the others: doubling, odd, one pixel, no multiples, a
# row, shrinking.
PYRAMIDS = [
    [(13, 17)],
    [(16, 16), (8, 8)],
    [(13, 17), (7, 9), (4, 4), (1, 2)],
    [(16, 11), (3, 5), (1, 1)],
    [(4, 9), (1, 7)],
    [(1, 1), (1, 1)],
    [(5, 4), (9, 8)],
]
corners = pytest.mark.parametrize('align_corners', [False, True])


versions = pytest.mark.parametrize('version', [portable, on_cpu])
pyramids = pytest.mark.parametrize('sizes', PYRAMIDS)


def plain(maps, weight, bias, align_corners):
    size = maps[0].shape[2:]
    up = [
        F.interpolate(x, size, mode='bilinear', align_corners=align_corners)
        for x in maps
    ]
    return F.conv2d(torch.cat(up, 1), weight, bias, padding=1)


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def make(sizes):
    maps = [random(2, 3 + i, *size) for i, size in enumerate(sizes)]
    return maps, random(4, sum(x.shape[1] for x in maps), 3, 3), random(4)


@corners
@pyramids
@versions
def test_it_equals_convolving_the_upsampled_maps(version, sizes, align_corners):
    assert_equals_plain(version, sizes, align_corners)


@corners
@pyramids
def test_bands_of_any_size_give_the_same(monkeypatch, sizes, align_corners):
    monkeypatch.setattr(pyramid_conv, 'BAND', 1)
    monkeypatch.setattr(pyramid_conv, 'BAND_COLUMNS', 2)
    assert_equals_plain(on_cpu, sizes, align_corners)


def assert_equals_plain(version, sizes, align_corners):
    maps, weight, bias = make(sizes)
    results = []
    for function in (version, plain):
        out = function(maps, weight, bias, align_corners)
        inputs = (weight, bias, *maps)
        results.append([out, *torch.autograd.grad(out.sin().sum(), inputs)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@versions
@pytest.mark.parametrize('frozen', ['maps', 'weight'])
def test_what_is_frozen_gets_no_gradient(version, frozen):
    maps, weight, _ = make([(9, 8), (4, 5), (1, 2)])
    for tensor in maps if frozen == 'maps' else [weight]:
        tensor.requires_grad_(False)
    wanted = [tensor for tensor in (weight, *maps) if tensor.requires_grad]
    got, expected = (
        torch.autograd.grad(f(maps, weight, None, False).sin().sum(), wanted)
        for f in (version, plain)
    )
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_a_pyramid_keeps_its_inputs_only():
    maps, weight = [random(1, 4, 16, 16), random(1, 4, 8, 8)], random(5, 8, 3, 3)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda saved: saved):
        ops.pyramid_conv3x3(maps, weight, None, False)
    assert {tensor.data_ptr() for tensor in kept} == {
        tensor.data_ptr() for tensor in (weight, *maps)
    }


@corners
@versions
def test_bf16_is_as_near_to_float64_as_the_plain_expression(version, align_corners):
    maps = [random(1, 64, side, side).detach() for side in (32, 16)]
    weight = random(48, 128, 3, 3).detach() / 34
    exact = plain(maps, weight, None, align_corners)
    maps, weight = [x.bfloat16() for x in maps], weight.bfloat16()
    errors = [
        (function(maps, weight, None, align_corners) - exact).std()
        for function in (version, plain)
    ]
    assert errors[0] < 1.5 * errors[1]
