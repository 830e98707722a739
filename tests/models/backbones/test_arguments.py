"""A mistake in an argument is answered by one sentence that names it."""

from __future__ import annotations

import pytest
import torch

from builders import FAMILIES, tiny
from mmseg_twins.models.backbones import PCPVT, SVT


@pytest.mark.parametrize('family', FAMILIES.values())
@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(arch='tiny'), "arch='tiny'.*'small', 'base', 'large'"),
        (dict(arch='small', depths=(2, 2)), 'same length.*embed_dims 4.*depths 2'),
        (
            dict(arch='small', num_heads=(1, 2, 5, 7)),
            r'num_heads\[\d\]=\d does not divide embed_dims\[\d\]=\d+',
        ),
        (dict(arch='small', sr_ratios=(8, 4, 2, 0)), 'sr_ratios=.*positive integers'),
        (dict(arch='small', depths=4), 'depths=4 is not a list'),
        (dict(arch='small', embed_dims=()), r'embed_dims=\(\) is not a list'),
        (dict(arch='small', strides=(4, 2, 2)), 'same length.*strides 3'),
        (dict(arch='small', out_indices=(0, 4)), r'out_indices=\(0, 4\).*0 to 3'),
        (dict(arch='small', out_indices=()), r'out_indices=\(\).*0 to 3'),
        (dict(arch='small', out_indices=3), 'out_indices=3; give a list.*0 to 3'),
        (dict(arch='small', init_cfg=123), 'init_cfg=123; give None, or a dict'),
        (dict(arch='small', frozen_stages=5), r'frozen_stages=5.*to 4'),
        (dict(arch='small', drop_path_rate=1.5), 'drop_path_rate=1.5.*from 0'),
        (dict(arch='small', drop_rate=-0.1), 'drop_rate=-0.1.*from 0'),
        (dict(arch='small', norm_cfg=dict(type='BN')), "norm_cfg=.*'BN'.*type='LN'"),
        (dict(arch='small', norm_cfg='LN'), "norm_cfg='LN'.*dict"),
        (dict(arch='small', in_channels=0), 'in_channels=0'),
    ],
    ids=lambda value: next(reversed(value)) if isinstance(value, dict) else '',
)
def test_a_bad_value_is_named(family, arguments, message):
    with pytest.raises(ValueError, match=message):
        family(**arguments)


@pytest.mark.parametrize('window_sizes', [(7, 7, 7, 0), (7, 7, 7, -1), (7.5, 7, 7, 7)])
def test_a_window_size_below_one_is_refused(window_sizes):
    with pytest.raises(ValueError, match=r'window_sizes=.*positive integers'):
        SVT(arch='small', window_sizes=window_sizes)


def test_both_spellings_of_window_sizes_are_refused():
    with pytest.raises(ValueError, match='same argument'):
        SVT(arch='small', window_sizes=(7,) * 4, windiow_sizes=(7,) * 4)


def test_windows_mean_nothing_to_pcpvt():
    with pytest.raises(TypeError, match="'window_sizes'"):
        PCPVT(arch='small', window_sizes=(7,) * 4)


@pytest.mark.parametrize('family', FAMILIES.values())
def test_an_unknown_argument_is_refused(family):
    with pytest.raises(TypeError, match="'depth'.*depths"):
        family(arch='small', depth=(2, 2, 2, 2))


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize(('height', 'width'), [(31, 64), (64, 20), (1, 1)])
def test_an_image_below_32_px_is_refused(family, height, width):
    with pytest.raises(ValueError, match=f'{height}x{width} px.*at least 32 px'):
        tiny(family)(torch.zeros(1, 3, height, width, dtype=torch.float64))


def test_pretrained_and_init_cfg_exclude_each_other():
    with pytest.raises(ValueError, match='pretrained=.*init_cfg'):
        PCPVT(arch='small', pretrained='a.pth', init_cfg=dict(type='Normal'))


def test_pretrained_is_deprecated_but_works():
    with pytest.warns(DeprecationWarning, match='init_cfg'):
        backbone = PCPVT(arch='small', pretrained='a.pth')
    assert backbone.init_cfg == dict(type='Pretrained', checkpoint='a.pth')
