"""Compiled training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from builders import tiny
from mmseg_twins.engine.compile_hook import CompileHook, forward_by_mode
from mmseg_twins.errors import SettingError

# Tracing a backbone takes long, and random numbers differ in compiled code.
SHORT = {
    'train_cfg.max_iters': 2,
    'model.backbone.drop_path_rate': 0.0,
    'model.decode_head.dropout_ratio': 0.0,
}


def hook(**options) -> dict:
    return dict(custom_hooks=[dict(type='mmseg_twins.CompileHook', **options)])


@pytest.mark.parametrize(
    ('options', 'tolerance'),
    [
        (dict(parts=['neck'], backend='eager'), 1e-5),
        pytest.param({}, 1e-4, marks=pytest.mark.slow, id='all'),
    ],
)
def test_compiled_training_has_the_weights_of_eager(train, options, tolerance):
    compiled = train(**SHORT, **hook(**options)).model
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] > 0
    assert 'forward' not in vars(compiled.neck)

    eager = train('eager', **SHORT).model
    for name, value in eager.named_parameters():
        found = compiled.get_parameter(name)
        torch.testing.assert_close(found, value, rtol=0, atol=tolerance)


@pytest.mark.slow
def test_a_compiled_segmentor_predicts_as_an_eager_one(make_segmentor):
    model = make_segmentor().float()
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        found = torch.compile(model)(image, mode='tensor')
        torch.testing.assert_close(
            found, model(image, mode='tensor'), rtol=0, atol=1e-5
        )


@pytest.mark.slow
def test_each_image_size_is_compiled():
    backbone = tiny('SVT', depths=(2, 1, 1, 1), drop_path_rate=0.0).float().train()
    compiled = torch.compile(backbone, **CompileHook().options)
    for size in ((64, 96), (64, 64)):
        image = torch.randn(2, 3, *size)
        torch.testing.assert_close(compiled(image), backbone(image), rtol=0, atol=1e-4)


def test_evaluation_is_not_compiled():
    part = nn.Identity()
    part.forward = forward_by_mode(part, lambda: 'eager', lambda: 'compiled')

    assert part.train()() == 'compiled'
    assert part.eval()() == 'eager'


@pytest.mark.parametrize('parts', [[], ['head']])
def test_unknown_parts_are_named(parts: list[str]):
    with pytest.raises(SettingError, match=r'parts=\[.*give some of backbone, neck'):
        CompileHook(parts=parts)
