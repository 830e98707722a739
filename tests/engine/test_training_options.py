"""The options of docs/training.md, on a small model that trains for an instant."""

from __future__ import annotations

import argparse
import copy
import re
import sys
from collections.abc import Sequence
from functools import reduce
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper, build_optim_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from builders import ROOT, train_demo
from mmseg_twins.cli import common as cli

OPTIONS = ROOT / 'configs/_base_/options'
PAGE = (ROOT / 'docs/training.md').read_text(encoding='utf-8')
CONFIGS = [
    'twins_svt-s_uperhead_8x2_512x512_160k_ade20k',
    'twins_pcpvt-s_fpn_fpnhead_8x4_512x512_80k_ade20k',
]


def parse(options: Sequence[str]) -> dict:
    parser = argparse.ArgumentParser()
    cli.add_common_arguments(parser)
    return parser.parse_args(['config.py', '--cfg-options', *options]).cfg_options


def logged(runner: Runner, name: str) -> list[float]:
    values, _ = runner.message_hub.get_scalar(f'train/{name}').data
    return [float(value) for value in values]


def weights(runner: Runner) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in runner.model.parameters()])


@pytest.fixture(scope='module')
def plain(demo: Config, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Two iterations without any option."""
    return train_demo(demo, tmp_path_factory.mktemp('plain'), train_cfg__max_iters=2)


@pytest.fixture(scope='module')
def with_options(demo: Config, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Four iterations with several options at once."""
    options = [
        'optim_wrapper.accumulative_counts=2',
        'optim_wrapper.clip_grad._delete_=True',
        'optim_wrapper.clip_grad.max_norm=0.01',
        'optim_wrapper.constructor=mmseg_twins.LayerDecayOptimWrapperConstructor',
        'optim_wrapper.paramwise_cfg.decay_rate=0.5',
        'optim_wrapper.optimizer._delete_=True',
        'optim_wrapper.optimizer.type=SGD',
        'optim_wrapper.optimizer.lr=1.0',
        'optim_wrapper.optimizer.weight_decay=0.0',
    ]
    folder = tmp_path_factory.mktemp('options')
    settings = dict(train_cfg__max_iters=4, param_scheduler=[])
    return train_demo(demo, folder, **settings, **parse(options))


def test_accumulated_gradients_make_one_update_of_several_iterations(with_options):
    assert len(logged(with_options, 'loss')) == 4
    assert len(logged(with_options, 'grad_norm')) == 2


def test_gradients_are_clipped_to_the_norm(with_options, train):
    assert min(logged(with_options, 'grad_norm')) > 0.01
    start = train(train_cfg__max_iters=1, optim_wrapper__optimizer__lr=0.0)
    # Two steps of at most 1.0 * 0.01 each.
    assert 0 < (weights(with_options) - weights(start)).norm() <= 0.02 * (1 + 1e-3)


def test_learning_rates_decay_through_the_backbone(with_options):
    wrapper, model = with_options.optim_wrapper, with_options.model
    rates = {
        id(p): group['lr'] for group in wrapper.param_groups for p in group['params']
    }
    assert rates[id(model.decode_head.conv_seg.weight)] == 1.0
    first = rates[id(model.backbone.patch_embeds[0].projection.weight)]
    assert first == pytest.approx(0.5**6)  # five blocks
    assert wrapper.get_lr()['base_lr'] == [1.0]


def test_checkpointed_activations_change_no_weight(train, plain: Runner):
    checkpointed = train(
        train_cfg__max_iters=2, **parse(['model.backbone.with_cp=True'])
    )

    assert checkpointed.model.backbone.with_cp
    assert torch.equal(weights(checkpointed), weights(plain))


def test_bf16_trains_on_any_device(train, plain: Runner):
    options = parse(['optim_wrapper.type=mmseg_twins.BF16OptimWrapper'])
    bf16 = train(train_cfg__max_iters=2, **options)

    assert weights(bf16).dtype == torch.float32
    assert logged(bf16, 'loss') != logged(plain, 'loss')
    assert logged(bf16, 'loss') == pytest.approx(logged(plain, 'loss'), rel=0.02)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_mmengines_wrapper_takes_either_type_where_there_is_a_gpu(
    dtype, demo: Config, monkeypatch
):
    module = sys.modules[AmpOptimWrapper.__module__]
    monkeypatch.setattr(module, 'is_cuda_available', lambda: True)
    line = f'optim_wrapper.type=AmpOptimWrapper optim_wrapper.dtype={dtype}'
    cfg = copy.deepcopy(demo)
    cfg.merge_from_dict(parse(line.split()))
    wrapper = build_optim_wrapper(torch.nn.Linear(2, 2), cfg.optim_wrapper)

    assert wrapper.cast_dtype == getattr(torch, dtype)


def test_checkpoints_hold_the_average_and_the_weights_beside_it(train, plain: Runner):
    (hook,) = Config.fromfile(OPTIONS / 'ema.py').custom_hooks
    averaged = train(custom_hooks=[dict(hook, momentum=0.25)], train_cfg__max_iters=2)
    first = train('first', train_cfg__max_iters=1).model.state_dict()
    second = plain.model.state_dict()

    saved = torch.load(Path(averaged.work_dir, 'iter_2.pth'), weights_only=True)
    name = 'backbone.patch_embeds.0.projection.weight'
    assert torch.equal(saved['ema_state_dict'][f'module.{name}'], second[name])
    # The average begins with the weights after the first iteration.
    average = 0.75 * first[name] + 0.25 * second[name]
    torch.testing.assert_close(saved['state_dict'][name], average)


def test_curves_reach_tensorboard(train):
    pytest.importorskip('tensorboard')
    options = parse(['visualizer.vis_backends.0.type=TensorboardVisBackend'])
    runner = train(train_cfg__max_iters=1, **options)

    assert list(Path(runner.work_dir).rglob('events.out.tfevents.*'))


@pytest.mark.parametrize('option', ['ema', 'compile'])
def test_an_option_can_be_inherited_beside_a_config(option: str, tmp_path: Path):
    bases = [str(ROOT / f'configs/{CONFIGS[0]}.py'), str(OPTIONS / f'{option}.py')]
    (tmp_path / 'config.py').write_text(f'_base_ = {bases!r}\n')
    cfg = Config.fromfile(tmp_path / 'config.py')

    assert cfg.model.backbone.arch == 'small'
    (hook,) = cfg.custom_hooks
    assert HOOKS.build(hook)


def option_lines() -> list[str]:
    """What the page's table says to put behind ``--cfg-options``."""
    table = PAGE.partition('## Options')[2].partition('\n## ')[0]
    rows = [line for line in table.splitlines() if line.startswith('|')]
    cells = [cell for row in rows for cell in re.findall(r'`([^`]+)`', row)]
    return [cell for cell in cells if re.match(r'\w+\.[\w.]+=', cell)]


@pytest.mark.parametrize('name', CONFIGS)
def test_the_pages_options_fit_the_configs(name: str):
    cfg = Config.fromfile(ROOT / f'configs/{name}.py')
    assert len(option_lines()) == 10
    for line in option_lines():
        changed = copy.deepcopy(cfg)
        changed.merge_from_dict(parse(line.split()))
        for key, value in parse(line.split()).items():
            if not key.endswith('._delete_'):
                assert reduce(pick, key.split('.'), changed) == value


def pick(part, name: str):
    return part[int(name)] if isinstance(part, list) else part[name]
