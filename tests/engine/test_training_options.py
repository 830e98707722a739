"""The options of docs/training.md, on a small model that trains for an instant."""

from __future__ import annotations

import argparse
import copy
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper, build_optim_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from scene_folder import write_scenes

from builders import run_in_two, small_demo, tiny
from mmseg_twins.cli import common as cli
from mmseg_twins.engine.compile_hook import CompileHook, forward_by_mode

ROOT = Path(__file__).parents[2]
OPTIONS = ROOT / 'configs/_base_/options'
PAGE = (ROOT / 'docs/training.md').read_text(encoding='utf-8')
RECIPES = [
    'twins_svt-s_uperhead_8x2_512x512_160k_ade20k',
    'twins_pcpvt-s_fpn_fpnhead_8x4_512x512_80k_ade20k',
]

Train = Callable[..., Runner]


@pytest.fixture(scope='module')
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('streets') / 'data'
    write_scenes(folder, training=4, validation=1, size=(64, 64))
    return folder


@pytest.fixture(scope='module')
def train(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> Iterator[Train]:
    """Trains the demo's model, narrower, with ``--cfg-options`` added."""
    demo = small_demo(scenes)

    def train(*options: str, iterations: int = 2, **settings) -> Runner:
        cfg = copy.deepcopy(demo)
        work_dir = tmp_path_factory.mktemp('run')
        cfg.merge_from_dict(
            {
                'train_cfg': dict(max_iters=iterations, val_interval=100),
                'default_hooks.checkpoint.interval': iterations,
                'work_dir': str(work_dir),
                # mmengine shares what has one name in a process.
                'experiment_name': work_dir.name,
                'visualizer.name': work_dir.name,
                **parse(options),
                **settings,
            }
        )
        runner = Runner.from_cfg(cfg)
        runner.train()
        return runner

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield train
    torch.set_num_threads(threads)


@pytest.fixture(scope='module')
def plain(train: Train) -> Runner:
    """Two iterations without any option."""
    return train()


def parse(options: Sequence[str]) -> dict:
    parser = argparse.ArgumentParser()
    cli.add_common_arguments(parser)
    given = ['--cfg-options', *options] if options else []
    return parser.parse_args(['config.py', *given]).cfg_options or {}


def logged(runner: Runner, name: str) -> list[float]:
    values, _ = runner.message_hub.get_scalar(f'train/{name}').data
    return [float(value) for value in values]


def weights(runner: Runner) -> torch.Tensor:
    """All parameters that training has arrived at, as one vector."""
    model = runner.model
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def compile_hook(**options) -> dict:
    return dict(custom_hooks=[dict(type='mmseg_twins.CompileHook', **options)])


def test_compiled_training_has_the_losses_and_weights_of_eager(
    train: Train, plain: Runner
):
    # Tracing a backbone takes long, and so does making machine code.
    compiled = train(**compile_hook(parts=['neck'], backend='eager'))

    assert torch._dynamo.utils.counters['stats']['unique_graphs'] > 0
    assert logged(compiled, 'loss') == pytest.approx(logged(plain, 'loss'), rel=1e-5)
    torch.testing.assert_close(weights(compiled), weights(plain), rtol=0, atol=1e-5)
    assert 'forward' not in vars(compiled.model.neck)


@pytest.mark.slow
def test_machine_code_has_the_losses_and_weights_of_eager(train: Train):
    fewer_blocks = {'model.backbone.depths': [2, 1, 1, 1]}
    compiled, eager = train(**compile_hook(), **fewer_blocks), train(**fewer_blocks)

    assert logged(compiled, 'loss') == pytest.approx(logged(eager, 'loss'), rel=1e-5)
    torch.testing.assert_close(weights(compiled), weights(eager), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_compiled_segmentor_predicts_as_an_eager_one(train: Train):
    fewer_blocks = {'model.backbone.depths': [2, 1, 1, 1]}
    model = train(iterations=1, **fewer_blocks).model.eval()
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        found = torch.compile(model)(image, mode='tensor')
        torch.testing.assert_close(
            found, model(image, mode='tensor'), rtol=0, atol=1e-5
        )


def test_evaluation_is_not_compiled():
    part = torch.nn.Identity()
    part.forward = forward_by_mode(part, lambda: 'eager', lambda: 'compiled')

    assert part.train()() == 'compiled'
    assert part.eval()() == 'eager'


@pytest.mark.slow
def test_images_of_several_sizes_are_compiled_one_by_one():
    backbone = tiny('SVT', drop_path_rate=0.0).float().train()
    compiled = torch.compile(backbone, **CompileHook().options)
    for size in ((64, 96), (64, 64)):
        image = torch.randn(2, 3, *size)
        torch.testing.assert_close(compiled(image), backbone(image), rtol=0, atol=1e-4)


def test_parts_that_are_none_are_named():
    with pytest.raises(ValueError, match="parts=.'head'.; give some of backbone, neck"):
        CompileHook(parts=['head'])


def test_checkpointed_activations_change_no_weight(train: Train, plain: Runner):
    checkpointed = train('model.backbone.with_cp=True')

    assert checkpointed.model.backbone.with_cp
    assert logged(checkpointed, 'loss') == logged(plain, 'loss')
    assert torch.equal(weights(checkpointed), weights(plain))


def test_accumulated_gradients_make_one_update_of_several_iterations(train: Train):
    runner = train('optim_wrapper.accumulative_counts=2', iterations=4)

    assert len(logged(runner, 'loss')) == 4
    states = runner.optim_wrapper.optimizer.state.values()
    assert {int(state['step']) for state in states} == {2}


def test_gradients_are_clipped_to_the_norm(train: Train):
    options = ['optim_wrapper.clip_grad._delete_=True']
    options += ['optim_wrapper.clip_grad.max_norm=0.01']
    runner = train(
        *options,
        **{'optim_wrapper.optimizer': dict(type='SGD', lr=1.0, weight_decay=0.0)},
    )

    assert min(logged(runner, 'grad_norm')) > 0.01
    start = train(iterations=1, **{'optim_wrapper.optimizer.lr': 0.0})
    # Two steps of at most 1.0 * 0.01 each.
    assert 0 < (weights(runner) - weights(start)).norm() <= 0.02 * (1 + 1e-3)


def test_bf16_trains_on_any_device(train: Train, plain: Runner):
    bf16 = train('optim_wrapper.type=mmseg_twins.BF16OptimWrapper')

    assert weights(bf16).dtype == torch.float32
    assert logged(bf16, 'loss') != logged(plain, 'loss')
    assert logged(bf16, 'loss') == pytest.approx(logged(plain, 'loss'), rel=0.02)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_mmengines_wrapper_takes_either_type_where_there_is_a_gpu(dtype, monkeypatch):
    module = sys.modules[AmpOptimWrapper.__module__]
    monkeypatch.setattr(module, 'is_cuda_available', lambda: True)
    line = f'optim_wrapper.type=AmpOptimWrapper optim_wrapper.dtype={dtype}'
    cfg = Config.fromfile(ROOT / 'configs/demo/twins_svt_fpn_streets.py')
    cfg.merge_from_dict(parse(line.split()))
    wrapper = build_optim_wrapper(torch.nn.Linear(2, 2), cfg.optim_wrapper)

    assert wrapper.cast_dtype == getattr(torch, dtype)


def test_learning_rates_decay_through_the_backbone(train: Train):
    runner = train(
        'optim_wrapper.constructor=mmseg_twins.LayerDecayOptimWrapperConstructor',
        'optim_wrapper.paramwise_cfg.decay_rate=0.5',
    )

    groups = runner.optim_wrapper.optimizer.param_groups
    rates = {id(p): group['lr'] for group in groups for p in group['params']}
    model = runner.model
    head = rates[id(model.decode_head.conv_seg.weight)]
    first = rates[id(model.backbone.patch_embeds[0].projection.weight)]
    assert first == pytest.approx(head * 0.5**9)  # eight blocks
    assert runner.optim_wrapper.get_lr()['base_lr'] == pytest.approx([head])


def test_checkpoints_hold_the_average_and_the_weights_beside_it(
    train: Train, plain: Runner
):
    (hook,) = Config.fromfile(OPTIONS / 'ema.py').custom_hooks
    averaged = train(custom_hooks=[dict(hook, momentum=0.25)])
    first, second = train(iterations=1).model.state_dict(), plain.model.state_dict()

    saved = torch.load(Path(averaged.work_dir, 'iter_2.pth'), weights_only=True)
    name = 'backbone.patch_embeds.0.projection.weight'
    assert torch.equal(saved['ema_state_dict'][f'module.{name}'], second[name])
    # The average begins with the weights after the first iteration.
    average = 0.75 * first[name] + 0.25 * second[name]
    torch.testing.assert_close(saved['state_dict'][name], average)


def test_curves_reach_tensorboard(train: Train):
    pytest.importorskip('tensorboard')
    runner = train('visualizer.vis_backends.0.type=TensorboardVisBackend')

    assert list(Path(runner.work_dir).rglob('events.out.tfevents.*'))


@pytest.mark.parametrize('option', ['ema', 'compile'])
def test_an_option_can_be_inherited_beside_a_recipe(option: str, tmp_path: Path):
    bases = [str(ROOT / f'configs/{RECIPES[0]}.py'), str(OPTIONS / f'{option}.py')]
    (tmp_path / 'config.py').write_text(f'_base_ = {bases!r}\n')
    cfg = Config.fromfile(tmp_path / 'config.py')

    assert cfg.model.backbone.arch == 'small'
    (hook,) = cfg.custom_hooks
    assert HOOKS.build(hook)


@pytest.mark.slow
def test_two_processes_train_with_several_options_at_once(scenes: Path, tmp_path: Path):
    demo = ROOT / 'configs/demo/twins_svt_fpn_streets.py'
    loader = dict(
        num_workers=0, persistent_workers=False, dataset=dict(data_root=str(scenes))
    )
    lines = [
        f'_base_ = {[str(demo), str(OPTIONS / "ema.py")]!r}',
        f'train_dataloader = val_dataloader = test_dataloader = {loader!r}',
        'train_cfg = dict(max_iters=2, val_interval=2)',
        'default_hooks = dict(checkpoint=dict(interval=2))',
    ]
    (tmp_path / 'config.py').write_text('\n'.join(lines))
    options = [
        'optim_wrapper.type=mmseg_twins.BF16OptimWrapper',
        'optim_wrapper.constructor=mmseg_twins.LayerDecayOptimWrapperConstructor',
        'optim_wrapper.paramwise_cfg.decay_rate=0.9',
        'optim_wrapper.accumulative_counts=2',
        'model.backbone.with_cp=True',
    ]
    run_in_two('train.py', 'config.py', '--cfg-options', *options, folder=tmp_path)

    (file,) = tmp_path.rglob('iter_2.pth')
    saved = torch.load(file, weights_only=True)
    averages = set(saved['ema_state_dict']) - {'steps'}
    assert averages == {f'module.{name}' for name in saved['state_dict']}
    # Eight blocks, patch embedding and heads; norms, which do not decay, apart.
    assert len(saved['optimizer']['param_groups']) == 2 * (8 + 2)
    assert any('GPU number: 2' in log.read_text() for log in tmp_path.rglob('*.log'))


def option_lines() -> list[str]:
    """What the page's table says to put behind ``--cfg-options``."""
    table = PAGE.partition('## Options')[2].partition('\n## ')[0]
    rows = [line for line in table.splitlines() if line.startswith('|')]
    cells = [cell for row in rows for cell in re.findall(r'`([^`]+)`', row)]
    return [cell for cell in cells if re.match(r'\w+\.[\w.]+=', cell)]


def test_the_pages_options_are_found():
    assert len(option_lines()) == 10


@pytest.mark.parametrize('recipe', RECIPES)
def test_the_pages_options_fit_the_recipes(recipe: str):
    cfg = Config.fromfile(ROOT / f'configs/{recipe}.py')
    for line in option_lines():
        changed = copy.deepcopy(cfg)
        changed.merge_from_dict(parse(line.split()))
        for key, value in parse(line.split()).items():
            if not key.endswith('._delete_'):
                assert reduce(pick, key.split('.'), changed) == value


def pick(part, name: str):
    return part[int(name)] if isinstance(part, list) else part[name]
