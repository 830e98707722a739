"""Converted checkpoints compute what their sources compute, in float64.

The logits of SSSegmentation's UPerNet (before upsampling, LayerNorm eps 1e-5) were
recorded with the deterministic weights of its own names: per variant the shape, the
standard deviation and 256 values at evenly spaced places.
"""

from __future__ import annotations

import json

import pytest
import torch
from mmengine.config import Config
from mmseg.registry import MODELS

from builders import (
    DATA,
    deterministic_image,
    recorded_features,
    recorded_state,
    sampled,
    shapes_of,
)
from mmseg_twins.checkpoints.conversion import convert_state_dict
from mmseg_twins.models.backbones import PCPVT, SVT

CONFIGS = DATA.parents[1] / 'configs'
CASES = [
    ('svt-s', 256, 320),
    ('pcpvt-s', 224, 224),
    pytest.param('svt-b', 256, 320, marks=pytest.mark.slow),
    pytest.param('svt-l', 224, 224, marks=pytest.mark.slow),
    pytest.param('pcpvt-b', 256, 320, marks=pytest.mark.slow),
    pytest.param('pcpvt-l', 256, 320, marks=pytest.mark.slow),
]
ARCHS = {'s': 'small', 'b': 'base', 'l': 'large'}


@pytest.mark.parametrize(('variant', 'height', 'width'), CASES)
def test_features_equal_the_official_codes(variant, height, width):
    converted, _ = convert_state_dict(
        recorded_state(shapes_of('official-seg', variant))
    )
    family, size = variant.split('-')
    backbone = {'pcpvt': PCPVT, 'svt': SVT}[family](arch=ARCHS[size]).double().eval()
    backbone.load_state_dict(converted, strict=True)

    with torch.inference_mode():
        features = backbone(deterministic_image(height, width))

    for feature, stage in zip(
        features, recorded_features(variant, height, width), strict=True
    ):
        values = torch.tensor(stage['values'], dtype=torch.float64)
        difference = (sampled(feature) - values).abs().max() / stage['std']
        assert difference < 1e-9


@pytest.mark.parametrize(
    'variant',
    [
        'svt-s',
        pytest.param('svt-b', marks=pytest.mark.slow),
        pytest.param('pcpvt-s', marks=pytest.mark.slow),
    ],
)
def test_logits_equal_sssegmentations(variant):
    file = DATA / 'features' / f'ssseg-upernet_{variant}_1x256x320.json'
    recorded = json.loads(file.read_text())
    state = recorded_state(shapes_of('ssseg-upernet', variant))
    converted, report = convert_state_dict(state)
    # The config that the report names, as it stands.
    cfg = Config.fromfile(CONFIGS / report.config())
    assert report.options() == []
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model).double().eval()
    model.load_state_dict(converted, strict=True)

    with torch.inference_mode():
        features = model.backbone(deterministic_image(256, 320))
        logits = model.decode_head.forward(features)

    assert list(logits.shape) == recorded['shape']
    values = torch.tensor(recorded['values'], dtype=torch.float64)
    places = torch.linspace(0, logits.numel() - 1, len(values), dtype=torch.float64)
    found = logits.reshape(-1)[places.long()]
    assert (found - values).abs().max() / recorded['std'] < 1e-9
