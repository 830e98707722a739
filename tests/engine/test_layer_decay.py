"""Layer-wise decay of the learning rate, against an expectation made from names."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

from builders import FAMILIES, SIZES, VARIANTS
from mmseg_twins.engine import layer_decay
from mmseg_twins.errors import SettingError

ARCHS = {'s': 'small', 'b': 'base', 'l': 'large'}
LR, DECAY = 6e-5, 0.01
every_variant = pytest.mark.parametrize('variant', VARIANTS)


class Segmentor(nn.Module):
    """As much of a segmentor as an optimizer sees."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.decode_head = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))


def make(variant: str, **kwargs) -> Segmentor:
    family, _, size = variant.partition('-')
    with torch.device('meta'):
        return Segmentor(FAMILIES[family.upper()](arch=ARCHS[size], **kwargs))


def optimizer_of(model: nn.Module, **paramwise) -> torch.optim.Optimizer:
    cfg = dict(
        type='OptimWrapper',
        constructor='mmseg_twins.LayerDecayOptimWrapperConstructor',
        optimizer=dict(type='AdamW', lr=LR, weight_decay=DECAY),
        paramwise_cfg=paramwise,
    )
    return build_optim_wrapper(model, cfg).optimizer


def settings(model: nn.Module, **paramwise) -> dict[str, tuple[float, float]]:
    """Maps the name of each parameter to its learning rate and weight decay."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for group in optimizer_of(model, **paramwise).param_groups:
        for parameter in group['params']:
            assert names[id(parameter)] not in found
            found[names[id(parameter)]] = (group['lr'], group['weight_decay'])
    return found


def layer(name: str, depths: tuple[int, ...]) -> int:
    """The layer of a parameter: all blocks are listed, and looked for by name."""
    blocks = [
        f'backbone.layers.{stage}.{index}.'
        for stage, depth in enumerate(depths)
        for index in range(depth)
    ]
    if not name.startswith('backbone.'):
        return len(blocks) + 1
    if name.startswith('backbone.patch_embeds.0.'):
        return 0
    stage = re.fullmatch(r'backbone\.\w+\.(\d)\..*', name).group(1)
    of_stage = [block for block in blocks if block.split('.')[2] == stage]
    if 'patch_embeds' in name or 'position_encodings' in name:
        return 1 + blocks.index(of_stage[0])
    if 'norm_list' in name:
        return 1 + blocks.index(of_stage[-1])
    (block,) = [block for block in of_stage if name.startswith(block)]
    return 1 + blocks.index(block)


@every_variant
def test_rates_are_those_that_the_names_say(variant: str):
    model, depths = make(variant), SIZES[variant].depths
    found = settings(model, decay_rate=0.8)

    assert found.keys() == {name for name, _ in model.named_parameters()}
    for name, (rate, weight_decay) in found.items():
        power = sum(depths) + 1 - layer(name, depths)
        assert rate == pytest.approx(LR * 0.8**power, rel=1e-12), name
        assert weight_decay == DECAY


@every_variant
def test_norms_and_position_encodings_keep_their_weight_decay(variant: str):
    model = make(variant)
    paramwise = dict(
        norm_decay_mult=0.0, custom_keys={'position_encodings': dict(decay_mult=0.0)}
    )
    found = settings(model, decay_rate=0.8, **paramwise)

    undecayed = {name for name, (_, decay) in found.items() if decay == 0}
    norms = {
        f'{prefix}.{name}'
        for prefix, module in model.named_modules()
        if isinstance(module, (nn.LayerNorm, nn.BatchNorm2d))
        for name, _ in module.named_parameters(recurse=False)
    }
    encodings = {name for name in found if '.position_encodings.' in name}
    assert len(encodings) == 8
    assert undecayed == norms | encodings
    plain = settings(model, decay_rate=0.8)
    assert {name: rate for name, (rate, _) in found.items()} == {
        name: rate for name, (rate, _) in plain.items()
    }


def test_equal_settings_share_a_group():
    model = make('svt-s')
    blocks = sum(SIZES['svt-s'].depths)

    assert len(optimizer_of(model, decay_rate=0.9).param_groups) == blocks + 2
    groups = optimizer_of(model, decay_rate=0.9, norm_decay_mult=0.0).param_groups
    assert len(groups) == 2 * (blocks + 2)
    assert len(optimizer_of(model, decay_rate=1).param_groups) == 1


def test_multipliers_of_custom_keys_come_on_top():
    model = make('pcpvt-s')
    found = settings(model, decay_rate=0.5, custom_keys={'head': dict(lr_mult=10.0)})

    assert found['decode_head.0.weight'][0] == pytest.approx(10 * LR)
    assert found['backbone.layers.3.2.norm1.weight'][0] == pytest.approx(LR / 2)


def test_frozen_parameters_are_left_out():
    found = settings(make('svt-s', frozen_stages=2), decay_rate=0.9)

    assert not [name for name in found if re.match(r'backbone\.\w+\.[01]\.', name)]
    assert [name for name in found if name.startswith('backbone.layers.2.0.')]


def test_a_shared_parameter_is_optimized_once():
    model = make('svt-s')
    model.twin = nn.Conv2d(8, 8, 1, device='meta')
    model.twin.weight = model.decode_head[0].weight

    assert len(settings(model, decay_rate=0.9)) == len(list(model.parameters()))


def test_layers_are_found_whatever_wrappers_call_the_parameters():
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self._wrapped = module

    plain, wrapped = make('svt-s'), make('svt-s')
    stage = wrapped.backbone.layers[2]
    stage[3] = Wrapper(stage[3])
    expected = settings(plain, decay_rate=0.9)

    found = settings(wrapped, decay_rate=0.9)
    assert {name.replace('_wrapped.', ''): v for name, v in found.items()} == expected


def test_the_log_lists_rates_and_what_they_are_for(monkeypatch):
    logged = []
    monkeypatch.setattr(
        layer_decay, 'print_log', lambda text, logger: logged.append(text)
    )
    settings(make('svt-s'), decay_rate=0.9)

    (text,) = logged
    rows = [line.split(maxsplit=4) for line in text.splitlines()[2:]]
    assert [int(row[0]) for row in rows] == list(range(20))
    assert rows[3][4] == 'patch_embeds.1, layers.1.0, position_encodings.1'
    assert rows[18][4] == 'layers.3.3, norm_list.3'
    assert rows[19] == ['19', '1.00000', '6.00e-05', '88', 'decode_head']


@pytest.mark.parametrize('rate', [None, 0, -0.1, 1.01, 'high', True, float('nan')])
def test_rates_that_are_no_decay_are_refused(rate):
    paramwise = {} if rate is None else dict(decay_rate=rate)
    with pytest.raises(SettingError, match='decay_rate=.*above 0 and up to 1'):
        optimizer_of(make('svt-s'), **paramwise)


def with_an_unknown_part() -> nn.Module:
    model = make('svt-s')
    model.backbone.extra = nn.Linear(2, 2, device='meta')
    return model


@pytest.mark.parametrize(
    ('model', 'says'),
    [
        (
            lambda: nn.Sequential(nn.Linear(2, 2)),
            'this Sequential has none; leave out',
        ),
        (
            lambda: nn.ModuleList([make('svt-s'), make('svt-b')]),
            'have 18 and 24 blocks',
        ),
        (with_an_unknown_part, "does not know .* 'extra.weight' belongs"),
    ],
)
def test_models_that_it_is_not_for_are_refused(model: Callable, says: str):
    with pytest.raises(SettingError, match=says):
        optimizer_of(model(), decay_rate=0.9)


def test_a_missing_learning_rate_is_named():
    cfg = dict(
        constructor='mmseg_twins.LayerDecayOptimWrapperConstructor',
        optimizer=dict(type='AdamW'),
        paramwise_cfg=dict(decay_rate=0.9),
    )
    with pytest.raises(SettingError, match='optim_wrapper.optimizer.lr'):
        build_optim_wrapper(make('svt-s'), cfg)
