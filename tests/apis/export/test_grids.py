"""Matrices and indices made from shapes, against PyTorch's own operations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mmseg_twins.apis.export.grids import averaging, cover_with_windows, interpolation

LIKE = torch.zeros((), dtype=torch.float64)
sides = st.integers(1, 60)


@given(size=sides, bins=st.integers(1, 9))
@settings(deadline=None)
def test_averaging_is_adaptive_pooling(size: int, bins: int):
    x = torch.randn(2, 3, size, dtype=torch.float64)

    expected = F.adaptive_avg_pool1d(x, bins)

    torch.testing.assert_close(x @ averaging(size, bins, LIKE).T, expected)


@given(size_in=sides, size_out=sides, align_corners=st.booleans())
@settings(deadline=None)
def test_interpolation_is_that_of_pytorch(
    size_in: int, size_out: int, align_corners: bool
):
    x = torch.randn(2, 3, size_in, dtype=torch.float64)
    (matrix,) = interpolation(size_in, size_out, align_corners, LIKE)

    expected = F.interpolate(x, size_out, mode='linear', align_corners=align_corners)

    torch.testing.assert_close(x @ matrix.T, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('align_corners', [False, True])
def test_shifted_copies_have_zeros_at_the_ends(align_corners: bool):
    left, plain, right = interpolation(5, 11, align_corners, LIKE, (-1, 0, 1))

    assert torch.equal(left[1:], plain[:-1])
    assert not left[0].any()
    assert torch.equal(right[:-1], plain[1:])
    assert not right[-1].any()


@given(height=st.integers(1, 30), width=st.integers(1, 30), window=st.integers(1, 8))
@settings(deadline=None)
def test_windows_hold_every_place_once_and_mark_the_others(
    height: int, width: int, window: int
):
    cut, join, bias = cover_with_windows(height, width, window, LIKE)
    inside = bias.flatten() == 0

    assert torch.equal(cut[join], torch.arange(height * width))
    assert torch.equal(torch.nonzero(inside)[:, 0], join.sort().values)
    assert bias.flatten()[~inside].eq(float('-inf')).all()
    assert cut.max() < height * width


def test_a_window_holds_a_square_of_the_map():
    cut, _, _ = cover_with_windows(4, 6, 2, LIKE)

    assert cut.view(6, 4).tolist()[:4] == [
        [0, 1, 6, 7],
        [2, 3, 8, 9],
        [4, 5, 10, 11],
        [12, 13, 18, 19],
    ]
