"""Floating-point operations that a step executes, attention counted.

They are those of matrix products, convolutions and attention as they run, two for a
multiplication and its addition. What an implementation computes needlessly, such as
products with padding, counts as well; so does what a backward pass computes again.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import torch
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

Shape = Sequence[int]


def attention_flops(query: Shape, key: Shape, value: Shape, *_, **__) -> int:
    """Fused attention, of (B, heads, L, C / heads) each."""
    return sdpa_flop_count(query, key, value)


def attention_backward_flops(
    gradient: Shape, query: Shape, key: Shape, value: Shape, *_, **__
) -> int:
    """Gradients of fused attention, which computes the scores again."""
    return sdpa_backward_flop_count(gradient, query, key, value)


def convolution_backward_flops(
    gradient: Shape,
    x: Shape,
    weight: Shape,
    _bias,
    _stride,
    _padding,
    _dilation,
    transposed: bool,
    _output_padding,
    _groups,
    output_mask: Sequence[bool],
    **_,
) -> int:
    """Gradients of a convolution: as many as its forward pass for x and for weight.

    PyTorch's own formula counts the weight of a convolution in C groups, such as the
    depth-wise ones of Twins, C times.
    """
    places = x if transposed else gradient
    forward = 2 * places[0] * math.prod(places[2:]) * math.prod(weight)
    return forward * sum(map(bool, output_mask[:2]))


aten = torch.ops.aten
# What PyTorch's counter does not know, or counts wrongly. An operation that this
# version of PyTorch does not have is passed over.
FORMULAS = {
    '_scaled_dot_product_flash_attention_for_cpu': attention_flops,
    '_scaled_dot_product_flash_attention_for_cpu_backward': attention_backward_flops,
    '_scaled_dot_product_fused_attention_overrideable': attention_flops,
    '_scaled_dot_product_fused_attention_overrideable_backward': (
        attention_backward_flops
    ),
    'convolution_backward': convolution_backward_flops,
}


def count_flops(step: Callable[[], object]) -> int:
    """Runs a step and counts.

    Args:
        step: runs eagerly; compiled code hides what it does.

    Returns:
        Floating-point operations of matrix products, convolutions and attention.
    """
    mapping = {
        getattr(aten, name): formula
        for name, formula in FORMULAS.items()
        if hasattr(aten, name)
    }
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # about its table of modules, not used here
        counter = FlopCounterMode(display=False, custom_mapping=mapping)
        with counter:
            step()
    return counter.get_total_flops()
