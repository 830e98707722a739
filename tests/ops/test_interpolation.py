"""Matrices of linear interpolation, and what is kept of them."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from mmseg_twins.ops import interpolation as module
from mmseg_twins.ops.interpolation import interpolation, shifted_interpolation

CPU = torch.device('cpu')
corners = pytest.mark.parametrize('align_corners', [False, True])


@pytest.fixture(autouse=True)
def _empty_cache():
    module._cached_matrix.cache_clear()


@corners
@pytest.mark.parametrize('sizes', [(5, 12), (1, 4), (7, 3), (1, 1), (3, 1), (64, 512)])
def test_the_matrix_is_that_of_pytorchs_interpolation(sizes, align_corners):
    size_in, size_out = sizes
    matrix = interpolation(size_in, size_out, align_corners, torch.float64, CPU)
    x = torch.randn(1, 1, size_in, dtype=torch.float64)
    expected = F.interpolate(x, size_out, mode='linear', align_corners=align_corners)
    torch.testing.assert_close(matrix @ x[0, 0], expected[0, 0], rtol=0, atol=1e-13)


@corners
def test_taps_are_rows_moved_by_one(align_corners):
    plain = interpolation(5, 11, align_corners, torch.float64, CPU)
    taps = shifted_interpolation(5, 11, align_corners, torch.float64, CPU)
    padded = F.pad(plain, (0, 0, 1, 1))
    for tap in range(3):
        assert torch.equal(taps[tap], padded[tap : tap + 11])


def test_matrices_are_kept_by_size_type_and_device_up_to_a_bound():
    first = shifted_interpolation(3, 6, False, torch.float32, CPU)
    again = shifted_interpolation(3, 6, False, torch.float32, CPU)
    assert first is again
    assert shifted_interpolation(3, 6, False, torch.float64, CPU) is not first
    assert module._cached_matrix.cache_info().maxsize == module.CACHE_SIZE


def test_fake_tensors_leave_nothing_in_the_cache():
    with FakeTensorMode():
        interpolation(3, 6, False, torch.float32, CPU)
    assert type(interpolation(3, 6, False, torch.float32, CPU)) is torch.Tensor


def test_a_matrix_made_in_inference_mode_serves_training():
    with torch.inference_mode():
        interpolation(3, 6, False, torch.float32, CPU)
    x = torch.randn(3, requires_grad=True)
    (interpolation(3, 6, False, torch.float32, CPU) @ x).sum().backward()
    assert x.grad.abs().sum() > 0
