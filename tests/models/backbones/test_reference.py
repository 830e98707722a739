"""The backbones compute what the official code computes, in float64."""

from __future__ import annotations

import pytest
import torch

from builders import (
    deterministic_image,
    deterministic_state,
    recorded_features,
    sampled,
)
from mmseg_twins.models.backbones import PCPVT, SVT

ARCHS = {'s': 'small', 'b': 'base', 'l': 'large'}
VARIANTS = [f'{family}-{size}' for family in ('pcpvt', 'svt') for size in ARCHS]
# 224x224 needs no padding in SVT-S's first stages, 256x320 on both sides, 448x512 on
# one side, where the mask of the official code and of its copies is wrong.
CASES = [(variant, 256, 320) for variant in VARIANTS]
CASES += [('svt-s', 224, 224)]
CASES += [(variant, 448, 512) for variant in ('pcpvt-s', 'svt-s')]
LARGE_CASES = [
    (variant, *side)
    for variant in VARIANTS
    for side in ((224, 224), (448, 512))
    if (variant, *side) not in CASES
]


def build(variant: str) -> torch.nn.Module:
    """A variant with the deterministic weights, in float64."""
    family, size = variant.split('-')
    backbone = {'pcpvt': PCPVT, 'svt': SVT}[family](arch=ARCHS[size])
    backbone.double().eval()
    backbone.load_state_dict(deterministic_state(backbone.state_dict()), strict=True)
    return backbone


def largest_relative_difference(variant: str, height: int, width: int) -> float:
    """The largest difference to the recorded values, in units of their spread."""
    with torch.inference_mode():
        features = build(variant)(deterministic_image(height, width))
    recorded = recorded_features(variant, height, width)
    assert [list(feature.shape) for feature in features] == [
        stage['shape'] for stage in recorded
    ]
    values = [torch.tensor(stage['values'], dtype=torch.float64) for stage in recorded]
    return max(
        float((sampled(feature) - expected).abs().max()) / stage['std']
        for feature, expected, stage in zip(features, values, recorded, strict=True)
    )


@pytest.mark.parametrize(('variant', 'height', 'width'), CASES)
def test_features_equal_the_official_codes(variant, height, width):
    assert largest_relative_difference(variant, height, width) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize(('variant', 'height', 'width'), LARGE_CASES)
def test_features_equal_the_official_codes_at_more_sizes(variant, height, width):
    assert largest_relative_difference(variant, height, width) < 1e-9
