"""Tiny backbones, so that numerics take milliseconds."""

from __future__ import annotations

import torch

from mmseg_twins.models.backbones import PCPVT, SVT

FAMILIES = {'PCPVT': PCPVT, 'SVT': SVT}
TINY = dict(
    embed_dims=(8, 16, 24, 32),
    num_heads=(1, 2, 3, 4),
    mlp_ratios=(4, 4, 2, 2),
    depths=(2, 2, 3, 2),
    sr_ratios=(8, 4, 2, 1),
    qkv_bias=True,
)


def tiny(family: str, **kwargs) -> PCPVT | SVT:
    """A float64 backbone of a few thousand parameters, none of them at a special value.

    Normalizations start at 1 and biases at 0, which would hide mistakes.
    """
    if family == 'SVT':
        kwargs = {'window_sizes': (7, 7, 7, 7), **kwargs}
    backbone = FAMILIES[family](**{**TINY, **kwargs}).double()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return backbone
