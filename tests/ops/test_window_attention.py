"""Attention within windows, at any size of the map."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mmseg_twins import ops
from mmseg_twins.ops.window_attention import (
    cut,
    fill,
    filling_bias,
    join,
    orders,
    partition,
    uncut,
)

HEADS = 2
# Multiples of the window, ragged on one side or both, smaller than a window.
SIZES = [(14, 7), (7, 10), (16, 14), (15, 9), (3, 5), (1, 8)]


def attend_pixel_by_pixel(qkv, window_size):
    """Attend from each token to those of its window, without any window's shape."""
    b, h, w, c = qkv.shape
    window = (
        torch.arange(h)[:, None] // window_size * w + torch.arange(w) // window_size
    )
    mask = window.flatten()[:, None] == window.flatten()
    q, k, v = qkv.reshape(b, h * w, 3, HEADS, -1).transpose(1, 3).unbind(2)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).reshape(b, h, w, c // 3)


@pytest.mark.parametrize('size', SIZES)
def test_tokens_attend_to_those_of_their_window(size):
    qkv = torch.randn(2, *size, 3 * 8, dtype=torch.float64)
    tokens, windows = ops.to_windows(qkv, 7)
    out = ops.from_windows(ops.window_attention(tokens, windows, HEADS), windows)
    expected = attend_pixel_by_pixel(qkv, 7)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('size', SIZES)
def test_tokens_that_fill_windows_are_not_attended_to(size):
    qkv = torch.randn(2, *size, 3 * 8, dtype=torch.float64)
    windows = ops.Windows(7, *size, is_filled=True)
    tokens = fill(qkv, windows)
    out = ops.from_windows(ops.window_attention(tokens, windows, HEADS), windows)
    expected = attend_pixel_by_pixel(qkv, 7)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('size', SIZES)
def test_from_windows_inverts_filling(size):
    x = torch.randn(2, *size, 4)
    windows = ops.Windows(7, *size, is_filled=True)
    tokens = fill(x, windows)
    assert tokens.shape[1] == -(-size[0] // 7) * -(-size[1] // 7) * 49
    assert torch.equal(ops.from_windows(tokens, windows), x)


@pytest.mark.parametrize('size', SIZES)
def test_from_windows_inverts_to_windows(size):
    x = torch.randn(2, *size, 4)
    tokens, windows = ops.to_windows(x, 7)
    assert tokens.shape == (2 * size[0] * size[1], 4)
    assert torch.equal(ops.from_windows(tokens, windows), x)


@pytest.mark.parametrize('size', SIZES)
def test_the_order_that_is_kept_is_that_of_cutting_a_map(size):
    x = torch.randn(3, *size, 4, dtype=torch.float64, requires_grad=True)
    tokens, windows = ops.to_windows(x, 7)
    assert torch.equal(tokens, cut(x, windows))
    assert torch.equal(uncut(tokens, windows), x)
    gradients = [
        torch.autograd.grad(function(x).sin().square().sum(), x)
        for function in (lambda x: ops.to_windows(x, 7)[0], lambda x: cut(x, windows))
    ]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-15)


def test_orders_are_made_once_for_maps_of_a_size():
    orders.cache_clear()
    with torch.inference_mode():
        ops.to_windows(torch.zeros(2, 9, 8, 1), 7)
    x = torch.zeros(2, 9, 8, 1, requires_grad=True)
    for _ in range(2):
        tokens, windows = ops.to_windows(x, 7)
        ops.from_windows(tokens, windows).sum().backward()
    assert (orders.cache_info().misses, orders.cache_info().hits) == (1, 4)


def test_join_inverts_partition():
    x = torch.randn(2, 6, 8, 3)
    windows = partition(x, 3, 4)
    assert windows.shape == (2 * 4, 12, 3)
    assert torch.equal(windows[1].view(3, 4, 3), x[0, :3, 4:])
    assert torch.equal(join(windows.flatten(0, 1), 3, 4, 6, 8), x)


def test_the_bias_marks_tokens_that_fill_windows():
    windows = ops.Windows(2, height=3, width=2, is_filled=True)
    bias = filling_bias(windows, torch.zeros(()))
    outside = [[False] * 4, [False, False, True, True]]
    assert torch.equal(bias[:, 0, 0] == -torch.inf, torch.tensor(outside))


@pytest.mark.parametrize('is_filled', [False, True])
def test_dropout_drops_attention_weights(is_filled):
    windows = ops.Windows(7, height=7, width=7, is_filled=is_filled)
    qkv = torch.ones(1, 49, 3 * 8)
    out = ops.window_attention(
        qkv if is_filled else qkv[0], windows, HEADS, dropout_rate=0.5
    )
    assert (out - 1).abs().max() > 1e-2
