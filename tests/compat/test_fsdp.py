"""mmengine's FSDPStrategy over two processes on the CPU."""

from __future__ import annotations

import copy
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import load_checkpoint
from mmseg.registry import MODELS
from scene_folder import write_scenes

from builders import ROOT, run_in_two, small_demo

SHARDED = dict(
    runner_type='FlexibleRunner',
    strategy=dict(
        type='FSDPStrategy',
        model_wrapper=dict(type='MMFullyShardedDataParallel', use_orig_params=True),
        state_dict_cfg='full',
    ),
)


@pytest.fixture(scope='module')
def demo(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp('fsdp')
    write_scenes(folder / 'data', training=8, validation=2, size=(64, 64))
    cfg = small_demo(folder / 'data')
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=4, val_interval=4)
    cfg.default_hooks.checkpoint.interval = 2
    # mmengine clips the gradients of each process by themselves.
    cfg.optim_wrapper.pop('clip_grad')
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(copy.deepcopy(cfg.model))
        model.init_weights()
    torch.save({'state_dict': model.state_dict()}, folder / 'start.pth')
    cfg.load_from = str(folder / 'start.pth')
    return cfg


def train_in_two(cfg: Config, folder: Path, *arguments: str, **settings) -> dict:
    """What training in two processes leaves in ``iter_4.pth``."""
    folder.mkdir(exist_ok=True)
    Config({**copy.deepcopy(cfg).to_dict(), **settings}).dump(folder / 'config.py')
    arguments = ('config.py', '--work-dir', 'run', *arguments)
    run_in_two('train.py', *arguments, folder=folder)
    return torch.load(folder / 'run/iter_4.pth', weights_only=True)


@pytest.mark.slow
def test_sharded_training_has_the_weights_of_a_data_parallel_one(
    demo: Config, tmp_path: Path
):
    expected = train_in_two(demo, tmp_path / 'whole')['state_dict']
    found = train_in_two(demo, tmp_path / 'sharded', **SHARDED)['state_dict']

    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    start = torch.load(demo.load_from, weights_only=True)['state_dict']
    name = 'backbone.patch_embeds.0.projection.weight'
    assert (found[name] - start[name]).abs().max() > 1e-4


@pytest.mark.slow
def test_a_sharded_training_is_resumed_and_its_checkpoint_loads_in_one_process(
    demo: Config, tmp_path: Path
):
    expected = train_in_two(demo, tmp_path, **SHARDED)
    (tmp_path / 'other/run').mkdir(parents=True)
    shutil.copy(tmp_path / 'run/iter_2.pth', tmp_path / 'other/run')
    resumed = train_in_two(
        demo, tmp_path / 'other', '--resume', **SHARDED, load_from=None
    )

    torch.testing.assert_close(resumed['state_dict'], expected['state_dict'])
    assert resumed['optimizer']['state'].keys() == expected['optimizer']['state'].keys()
    with DefaultScope.overwrite_default_scope('mmseg'):
        alone = MODELS.build(copy.deepcopy(demo.model))
    load_checkpoint(alone, str(tmp_path / 'run/iter_4.pth'), strict=True)
    torch.testing.assert_close(dict(alone.state_dict()), expected['state_dict'])


@pytest.mark.slow
def test_a_sharded_training_that_is_asked_to_end_loses_nothing(
    demo: Config, tmp_path: Path, monkeypatch
):
    monkeypatch.setenv('PYTHONPATH', str(ROOT / 'tests/resuming'))
    expected = train_in_two(demo, tmp_path / 'whole', **SHARDED)
    cfg = copy.deepcopy(demo)
    cfg.custom_imports.imports.append('kill_hook')
    cfg.default_hooks.kill = dict(
        type='mmseg_twins.Kill', moment='asked_in_step', at=2, share=0.5
    )
    with pytest.raises(subprocess.CalledProcessError):
        train_in_two(cfg, tmp_path / 'run', **SHARDED)
    # Processes agree one iteration later.
    left = sorted(file.name for file in (tmp_path / 'run/run').glob('*.pth'))
    assert left == ['iter_2.pth', 'iter_3.pth']

    resumed = train_in_two(
        demo, tmp_path / 'run', '--resume', **SHARDED, load_from=None
    )
    torch.testing.assert_close(resumed['state_dict'], expected['state_dict'])
