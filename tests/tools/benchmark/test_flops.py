"""The count of floating-point operations, against formulas written out."""

from __future__ import annotations

import pytest
import torch
from benchmarking.flops import count_flops
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

B, HEADS, L, M, D = 2, 3, 20, 30, 8


def attention_inputs(requires_grad: bool) -> list[torch.Tensor]:
    return [
        torch.randn(B, HEADS, length, D, requires_grad=requires_grad)
        for length in (L, M, M)
    ]


@pytest.mark.parametrize('backend', [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
def test_attention_is_counted_however_it_is_computed(backend):
    q, k, v = attention_inputs(False)

    def step():
        with sdpa_kernel(backend):
            F.scaled_dot_product_attention(q, k, v)

    assert count_flops(step) == 2 * (2 * B * HEADS * L * M * D)


def test_fused_attentions_gradients_compute_the_scores_again():
    q, k, v = attention_inputs(True)

    def step():
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            F.scaled_dot_product_attention(q, k, v).sum().backward()

    # Scores and output; scores again, and gradients of v, of the scores, of q and k.
    assert count_flops(step) == (2 + 5) * (2 * B * HEADS * L * M * D)


@pytest.mark.parametrize('groups', [1, 2, 8])
def test_a_convolutions_gradients_cost_as_much_as_two_forward_passes(groups):
    conv = torch.nn.Conv2d(8, 16, 3, stride=2, groups=groups)
    x = torch.randn(B, 8, 11, 11, requires_grad=True)
    forward = 2 * B * (5 * 5) * 16 * (8 // groups) * 9

    assert count_flops(lambda: conv(x)) == forward
    assert count_flops(lambda: conv(x).sum().backward()) == 3 * forward
    x.requires_grad_(False)
    assert count_flops(lambda: conv(x).sum().backward()) == 2 * forward


def test_linear_layers_are_counted_under_autocast():
    layer, x = torch.nn.Linear(8, 16), torch.randn(5, 8)

    def step():
        with torch.autocast('cpu', torch.bfloat16):
            layer(x)

    assert count_flops(step) == 2 * 5 * 8 * 16
