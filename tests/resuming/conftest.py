"""A training of the demo's model, small enough to be done in a moment."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from scene_folder import write_scenes

from builders import small_demo

Train = Callable[..., Runner]


@pytest.fixture(scope='session')
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('streets') / 'data'
    write_scenes(folder, training=5, validation=2, size=(64, 64))
    return folder


@pytest.fixture(scope='session')
def demo(scenes: Path) -> Config:
    """Dropout, stochastic depth and flips included."""
    cfg = small_demo(scenes)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.serialize_data = False
    cfg.merge_from_dict(
        {
            'model.backbone': dict(depths=[2, 1, 1, 1], drop_path_rate=0.3),
            'model.decode_head.dropout_ratio': 0.2,
            'train_cfg': dict(max_iters=6, val_interval=100),
            'default_hooks.checkpoint.interval': 2,
        }
    )
    return cfg


@pytest.fixture
def train(
    demo: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Train]:
    """Trains in a folder of the test, with settings replaced."""
    # mmengine formats the config with every checkpoint, half the time of such a run.
    monkeypatch.setattr(Config, 'pretty_text', 'left out')
    runs = 0

    def train(work_dir: str = 'run', *, exact: bool = True, **settings) -> Runner:
        nonlocal runs
        runs += 1
        cfg = copy.deepcopy(demo)
        name = f'{tmp_path.name}_{runs}'  # mmengine shares what has one name
        cfg.merge_from_dict(
            {
                'work_dir': str(tmp_path / work_dir),
                'experiment_name': name,
                'visualizer.name': name,
                # Merging takes `_delete_` out.
                **copy.deepcopy({k.replace('__', '.'): v for k, v in settings.items()}),
            }
        )
        if not exact:
            del cfg.default_hooks.resuming
        runner = Runner.from_cfg(cfg)
        runner.train()
        return runner

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield train
    torch.set_num_threads(threads)
