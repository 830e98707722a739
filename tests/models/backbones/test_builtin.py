"""The backbones against mmsegmentation's built-in ones, installed beside them."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmseg.models.backbones import twins as builtin

from builders import FAMILIES, TINY, tiny

CONFIGS = [
    'pcpvt-s_uperhead_8xb4', 'pcpvt-b_uperhead_8xb2', 'pcpvt-l_uperhead_8xb2',
    'svt-s_uperhead_8xb2', 'svt-b_uperhead_8xb2', 'svt-l_uperhead_8xb2',
]  # fmt: skip
SIZES = {'s': 'small', 'b': 'base', 'l': 'large'}


def builtin_config(name: str) -> Config:
    """The backbone of a config that mmsegmentation ships."""
    name = f'mmseg::twins/twins_{name}-160k_ade20k-512x512.py'
    return get_config(name).model.backbone


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a state dict."""
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


@pytest.mark.parametrize('name', CONFIGS)
def test_names_and_shapes_are_the_builtins(name):
    config = builtin_config(name)
    theirs = getattr(builtin, config.pop('type'))(**config)
    ours = FAMILIES[type(theirs).__name__](arch=SIZES[name.split('-')[1][0]])
    assert shapes(ours) == shapes(theirs)


@pytest.mark.parametrize('name', CONFIGS)
@pytest.mark.filterwarnings('ignore:windiow_sizes:DeprecationWarning')
def test_the_builtins_arguments_mean_the_same(name):
    config = builtin_config(name)
    family = FAMILIES[config.pop('type')]
    assert shapes(family(**config)) == shapes(family(arch=SIZES[name.split('-')[1][0]]))


@pytest.mark.parametrize('family', FAMILIES)
def test_no_arguments_mean_the_builtins_defaults(family):
    assert shapes(FAMILIES[family]()) == shapes(getattr(builtin, family)())


# In each of these, every stage pads both sides or none, where the built-in is right.
@pytest.mark.parametrize(('height', 'width'), [(224, 224), (256, 320), (64, 96)])
@pytest.mark.parametrize('family', FAMILIES)
def test_output_is_the_builtins_with_its_eps(family, height, width):
    norm_cfg = dict(type='LN', eps=1e-5)
    ours = tiny(family, norm_cfg=norm_cfg).eval()
    windows = dict(windiow_sizes=(7, 7, 7, 7)) if family == 'SVT' else {}
    theirs = getattr(builtin, family)(**TINY, **windows, norm_cfg=norm_cfg)
    theirs.double().eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    with torch.inference_mode():
        for got, expected in zip(ours(x), theirs(x), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_the_builtin_attends_to_padding_of_one_side():
    """The reason for one of the differences; if this fails, the built-in is mended."""
    norm_cfg = dict(type='LN', eps=1e-5)
    ours = tiny('SVT', norm_cfg=norm_cfg).eval()
    theirs = builtin.SVT(**TINY, windiow_sizes=(7, 7, 7, 7), norm_cfg=norm_cfg)
    theirs.double().eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, 224, 256, dtype=torch.float64)
    with torch.inference_mode():
        difference = ours(x)[0] - theirs(x)[0]
    assert difference.std() > 0.01 * ours(x)[0].std()
