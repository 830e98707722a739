"""`train.py --replay ITER`: one iteration again, with a look at its numbers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from builders import small_demo
from mmseg_twins.cli.train import main
from mmseg_twins.engine.check_numbers import image_files
from mmseg_twins.engine.replay import prepare_replay, replay
from mmseg_twins.errors import TrainingError

RESUMING = 'default_hooks.resuming'
MODULE = 'backbone.layers.1.0.ffn'


@HOOKS.register_module(force=True)
class Disturb(Hook):
    """Does something at an iteration that leads to a bad number."""

    def __init__(self, how: str = 'not', at: int = 5) -> None:
        self.how, self.at = how, at

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        FILES[runner.iter + 1] = image_files(data_batch)
        if runner.iter + 1 != self.at:
            return
        module = runner.model.get_submodule(MODULE)
        if self.how == 'weight':
            with torch.no_grad():
                next(module.parameters()).fill_(math.nan)
        elif self.how == 'image':
            image = data_batch['inputs'][0].float()
            image[0, 0, 0] = math.inf
            data_batch['inputs'][0] = image
        elif self.how == 'module':
            module.register_forward_hook(lambda _m, _x, output: output * math.inf)
        elif self.how == 'root':
            module.register_forward_hook(lambda _m, _x, output: output + root(output))
        elif self.how == 'gradient':
            module.register_forward_hook(lambda _m, _x, output: overflown(output))


def root(value: Tensor) -> Tensor:
    """Zeros, whose gradient is infinity times 0."""
    return (value * 0).sqrt()


def overflown(value: Tensor) -> Tensor:
    """The same, with a gradient that is infinite, but not NaN."""
    value = value.clone()
    value.register_hook(lambda gradient: gradient.abs() * math.inf + math.inf)
    return value


FILES: dict[int, list[str]] = {}


@pytest.fixture
def replayed(train, demo: Config, tmp_path: Path):
    """Trains, with a bad number at iteration 5, and replays an iteration."""

    def run(how: str, iteration: int = 5, **settings) -> tuple[Runner | None, str]:
        settings['custom_hooks'] = [dict(type='Disturb', how=how)]
        settings['default_hooks__numbers'] = dict(type='mmseg_twins.CheckNumbers')
        runner = None
        try:
            runner = train(**settings)
        except TrainingError:
            assert how != 'not'
        cfg = demo.copy()
        cfg.merge_from_dict({k.replace('__', '.'): v for k, v in settings.items()})
        cfg.work_dir = str(tmp_path / 'run')
        cfg.experiment_name = f'replay {tmp_path.name} {len(FILES)}'
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        prepare_replay(cfg, iteration)
        try:
            return runner, replay(Runner.from_cfg(cfg), iteration)
        finally:
            torch.set_num_threads(threads)

    return run


@pytest.mark.parametrize('iteration', [2, 5])
def test_the_iteration_is_the_one_of_the_training(replayed, iteration: int):
    runner, report = replayed('not', iteration)
    losses = runner.message_hub.get_scalar('train/loss').data[0]

    assert f'losses: loss {losses[iteration - 1]:.4g}, ' in report
    assert f'images: {", ".join(FILES[iteration])}' in report
    assert 'all of its outputs and gradients are finite' in report


@pytest.mark.parametrize(
    ('how', 'words'),
    [
        ('image', ['the images themselves are not finite', 'loss nan']),
        (
            'weight',
            [
                'not finite before the iteration: backbone.layers.1.0.ffn.layers.0.0.w',
                'the first output that is not finite is that of backbone.layers.1.0',
            ],
        ),
        (
            'module',
            [f'the first output that is not finite is that of {MODULE}\n', 'loss nan'],
        ),
        (
            'root',
            [
                'backward pass: the first gradient that is not finite is after it',
                "Function 'MulBackward0' returned nan values",
                'return (value * 0).sqrt()',
            ],
        ),
        (
            'gradient',
            ['backward pass: the first gradient that is not finite is at', MODULE],
        ),
    ],
)
def test_the_origin_is_named(replayed, how: str, words: list[str]):
    _, report = replayed(how)
    for each in ['iteration 5, learning rate ', *words]:
        assert each in f'{report}\n'


def content(folder: Path) -> dict[str, bytes]:
    """Checkpoints and notes; logs are in folders."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


@pytest.fixture
def config(scenes: Path, tmp_path: Path, monkeypatch) -> str:
    """A config file whose training has saved iterations 2 and 4 in `run`."""
    cfg = small_demo(scenes)
    cfg.train_cfg.update(max_iters=4, val_interval=100)
    cfg.default_hooks.checkpoint.interval = 2
    cfg.work_dir = 'run'
    monkeypatch.chdir(tmp_path)
    cfg.dump('config.py')
    return 'config.py'


def test_the_command_changes_nothing_that_is_resumed_from(
    config: str, tmp_path: Path, capsys
):
    main([config])
    before = content(tmp_path / 'run')
    capsys.readouterr()
    assert main([config, '--resume', '--replay', '4']) == 0

    printed = capsys.readouterr().out
    assert f'replaying from {tmp_path}/run/iter_2.pth' in printed
    assert 'iteration 4, learning rate' in printed
    assert content(tmp_path / 'run') == before
    assert not list((tmp_path / 'run/replays').rglob('*.pth'))


def test_an_iteration_before_all_checkpoints_is_replayed_from_the_start(
    config: str, capsys
):
    main([config])
    assert main([config, '--replay', '2']) == 0
    assert 'replaying from the beginning' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--replay', '5'], '--replay 5: this training can replay the iterations '),
        (['--replay', '0'], '--replay 0: '),
        (
            ['--replay', '1', '--cfg-options', 'randomness.seed=None'],
            'the config has no seed to start over with',
        ),
        (
            [
                '--replay',
                '3',
                '--cfg-options',
                'default_hooks.resuming.type=IterTimerHook',
            ],
            'needs the hook mmseg_twins.ExactResume',
        ),
    ],
)
def test_what_cannot_be_replayed_is_refused(
    config: str, capsys, arguments: list[str], words: str
):
    main([config])
    with pytest.raises(SystemExit) as error:
        main([config, *arguments])
    assert error.value.code == 2
    assert words in capsys.readouterr().err
