"""``conv3x3(upsample(x))`` at the map's own resolution against the plain one."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from mmseg_twins.ops.pyramid_conv import (
    conv3x3_of_pyramid,
    conv3x3_of_upsampled,
    interpolation,
    plain_conv3x3_of_pyramid,
    shifted_interpolation,
)

# (h, w) to (H, W): doubling, odd, one pixel, no multiples, a row, shrinking.
SIZES = [
    ((8, 8), (16, 16)),
    ((7, 9), (13, 17)),
    ((1, 1), (6, 5)),
    ((3, 5), (16, 11)),
    ((1, 7), (4, 9)),
    ((1, 1), (1, 1)),
    ((9, 8), (5, 4)),
]
corners = pytest.mark.parametrize('align_corners', [False, True])


def plain(x, weight, size, align_corners):
    up = F.interpolate(x, size, mode='bilinear', align_corners=align_corners)
    return F.conv2d(up, weight, padding=1)


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@corners
@pytest.mark.parametrize(('small', 'large'), SIZES)
def test_it_equals_convolving_the_upsampled_map(small, large, align_corners):
    x, weight = random(2, 5, *small), random(4, 5, 3, 3)
    got = conv3x3_of_upsampled(x, weight, large, align_corners)
    expected = plain(x, weight, large, align_corners)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@corners
@pytest.mark.parametrize(('small', 'large'), SIZES)
def test_its_gradients_are_those_of_the_plain_expression(small, large, align_corners):
    x, weight = random(2, 5, *small), random(4, 5, 3, 3)
    target = torch.randn(2, 4, *large, dtype=torch.float64)
    results = [
        torch.autograd.grad((f(x, weight, large, align_corners) * target).sum(), inputs)
        for f in (conv3x3_of_upsampled, plain)
        for inputs in [[x, weight]]
    ]
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@corners
@pytest.mark.parametrize('levels', [1, 2, 4])
def test_a_pyramid_equals_its_upsampled_concatenation(levels, align_corners):
    sizes = [(13, 17), (7, 9), (4, 4), (1, 2)][:levels]
    maps = [random(2, 3 + i, *size) for i, size in enumerate(sizes)]
    weight, bias = random(4, sum(x.shape[1] for x in maps), 3, 3), random(4)
    up = [
        F.interpolate(x, sizes[0], mode='bilinear', align_corners=align_corners)
        for x in maps
    ]
    expected = F.conv2d(torch.cat(up, 1), weight, bias, padding=1)
    got = conv3x3_of_pyramid(maps, weight, bias, align_corners)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@corners
@pytest.mark.parametrize('needed', ['maps', 'weight', 'all'])
def test_a_pyramid_has_the_gradients_of_its_plain_expression(needed, align_corners):
    maps = [random(2, 3 + i, *size) for i, size in enumerate([(9, 8), (4, 5), (1, 2)])]
    weight = random(4, 12, 3, 3)
    for tensor in maps if needed == 'weight' else [weight]:
        tensor.requires_grad_(needed == 'all')
    wanted = [tensor for tensor in (weight, *maps) if tensor.requires_grad]
    got, expected = (
        torch.autograd.grad(out.sin().sum(), wanted)
        for out in (
            conv3x3_of_pyramid(maps, weight, None, align_corners),
            plain_conv3x3_of_pyramid(maps, weight, align_corners),
        )
    )
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_a_pyramid_keeps_its_inputs_only():
    maps, weight = [random(1, 4, 16, 16), random(1, 4, 8, 8)], random(5, 8, 3, 3)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda saved: saved):
        conv3x3_of_pyramid(maps, weight, None, False)
    assert {tensor.data_ptr() for tensor in kept} == {
        tensor.data_ptr() for tensor in (weight, *maps)
    }


@corners
def test_interpolation_is_pytorchs(align_corners):
    matrix = interpolation(5, 12, align_corners, torch.float64, torch.device('cpu'))
    x = torch.randn(1, 1, 5, dtype=torch.float64)
    expected = F.interpolate(x, 12, mode='linear', align_corners=align_corners)
    torch.testing.assert_close(matrix @ x[0, 0], expected[0, 0], rtol=0, atol=1e-15)


def test_matrices_are_cached_per_size_type_and_device_with_a_bound():
    arguments = (3, 6, False, torch.float32, torch.device('cpu'))
    for function in (interpolation, shifted_interpolation):
        assert function(*arguments) is function(*arguments)
        assert function(3, 7, *arguments[2:]) is not function(*arguments)
        assert function.cache_info().maxsize == 128


def test_fake_tensors_leave_nothing_in_the_cache():
    shifted_interpolation.cache_clear()
    interpolation.cache_clear()
    with FakeTensorMode():
        conv3x3_of_upsampled(
            torch.zeros(1, 2, 3, 3), torch.zeros(4, 2, 3, 3), (6, 6), False
        )
    x, weight = torch.randn(1, 2, 3, 3), torch.randn(4, 2, 3, 3)
    assert type(conv3x3_of_upsampled(x, weight, (6, 6), False)) is torch.Tensor


def test_matrices_made_in_inference_mode_serve_training():
    shifted_interpolation.cache_clear()
    interpolation.cache_clear()
    x, weight = random(1, 2, 3, 3), random(2, 2, 3, 3)
    with torch.inference_mode():
        conv3x3_of_upsampled(x, weight, (6, 6), False)
    conv3x3_of_upsampled(x, weight, (6, 6), False).sum().backward()
    assert x.grad.abs().sum() > 0


@corners
def test_bf16_is_as_near_to_float64_as_the_plain_expression(align_corners):
    x, weight = random(1, 64, 16, 16).detach(), random(48, 64, 3, 3).detach() / 24
    exact = plain(x, weight, (32, 32), align_corners)
    errors = [
        (f(x.bfloat16(), weight.bfloat16(), (32, 32), align_corners) - exact).std()
        for f in (conv3x3_of_upsampled, plain)
    ]
    assert errors[0] < 1.5 * errors[1]
