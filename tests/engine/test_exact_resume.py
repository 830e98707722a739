"""A resumed training has the weights of one that was never stopped, bit for bit."""

from __future__ import annotations

import copy
import pickle
import random
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.runner import Runner
from mmseg.datasets import BaseSegDataset
from torch.utils.data import BatchSampler

from builders import ROOT, run_in_two
from mmseg_twins.engine.batches import (
    SAMPLE,
    STEP,
    NumberedBatches,
    SeededDataset,
    seed_generators,
)


def state(runner: Runner) -> dict:
    return {name: value.clone() for name, value in runner.model.state_dict().items()}


def equal(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )


@pytest.fixture
def whole(train) -> dict:
    """Six iterations at a stretch, without workers or validation."""
    return state(train('whole'))


@pytest.mark.parametrize('workers', [0, 2])
def test_a_resumed_training_ends_at_the_same_weights(train, whole: dict, workers: int):
    loader = dict(train_dataloader__num_workers=workers)
    train(**loader, train_cfg__max_iters=4, train_cfg__val_interval=2)

    assert equal(state(train(**loader, resume=True)), whole)


def test_resuming_a_complete_training_says_so(train, tmp_path: Path):
    counts = []
    for resume in (False, True):
        train(resume=resume, log_level='INFO')
        logs = ''.join(path.read_text() for path in tmp_path.rglob('*.log'))
        counts.append(logs.count('all 6 iterations were done before'))

    assert counts == [0, 1]


@pytest.mark.slow
def test_without_the_hook_it_does_not(train):
    train(exact=False, train_cfg__max_iters=4)
    alone = state(train('other', exact=False))

    assert not equal(state(train(exact=False, resume=True)), alone)


@pytest.mark.slow
def test_averaged_weights_are_taken_up_again(train):
    averaged = dict(custom_hooks=[dict(type='EMAHook', momentum=0.25)])
    train(**averaged, train_cfg__max_iters=4)
    resumed = train(**averaged, resume=True)

    saved = [
        torch.load(Path(runner.work_dir, 'iter_6.pth'), weights_only=True)
        for runner in (resumed, train('whole', **averaged))
    ]
    for key in ('state_dict', 'ema_state_dict'):
        assert equal(saved[0][key], saved[1][key])


@pytest.mark.slow
def test_training_by_epochs_is_resumed_too(train):
    settings = dict(
        train_cfg=dict(
            _delete_=True, type='EpochBasedTrainLoop', max_epochs=3, val_interval=9
        ),
        train_dataloader__sampler=dict(type='DefaultSampler', shuffle=True),
        param_scheduler=[],
    )
    settings['default_hooks__checkpoint'] = dict(by_epoch=True, interval=1)
    whole = state(train('whole', **settings))
    train(**settings, train_cfg__max_epochs=2)

    assert equal(state(train(**settings, resume=True)), whole)


@pytest.mark.slow
def test_a_seed_that_was_drawn_is_taken_up_again(train, tmp_path: Path):
    drawn = dict(randomness=dict(_delete_=True, seed=None))
    first = train(**drawn, train_cfg__max_iters=4)
    resumed = state(train(**drawn, resume=True))

    assert equal(resumed, state(train('whole', randomness__seed=first.seed)))


@pytest.mark.slow
def test_two_processes_with_several_options_are_resumed_too(
    scenes: Path, tmp_path: Path
):
    loader = dict(
        batch_size=2, num_workers=1, dataset=dict(data_root=str(scenes.absolute()))
    )
    bases = ['demo/twins_svt_fpn_streets.py', '_base_/options/ema.py']
    lines = [
        f'_base_ = {[str(ROOT / "configs" / base) for base in bases]!r}',
        f'train_dataloader = val_dataloader = test_dataloader = {loader!r}',
        'model = dict(backbone=dict(drop_path_rate=0.3, with_cp=True))',
        'train_cfg = dict(max_iters=4, val_interval=2)',
        'default_hooks = dict(checkpoint=dict(interval=2))',
        'optim_wrapper = dict(',
        "    type='mmseg_twins.BF16OptimWrapper',",
        "    constructor='mmseg_twins.LayerDecayOptimWrapperConstructor',",
        '    paramwise_cfg=dict(decay_rate=0.9),',
        '    accumulative_counts=2,',
        ')',
    ]
    (tmp_path / 'config.py').write_text('\n'.join(lines))

    def train_in_two(work_dir: str, *arguments: str) -> dict:
        arguments = ('--work-dir', work_dir, *arguments)
        run_in_two('train.py', 'config.py', *arguments, folder=tmp_path)
        return torch.load(tmp_path / work_dir / 'iter_4.pth', weights_only=True)

    whole = train_in_two('whole')
    (tmp_path / 'killed').mkdir()
    shutil.copy(tmp_path / 'whole/iter_2.pth', tmp_path / 'killed')
    resumed = train_in_two('killed', '--resume')

    for key in ('state_dict', 'ema_state_dict'):
        assert equal(resumed[key], whole[key])
    averages = set(whole['ema_state_dict']) - {'steps'}
    assert averages == {f'module.{name}' for name in whole['state_dict']}
    # Eight blocks, patch embedding and heads; norms, which do not decay, apart.
    assert len(whole['optimizer']['param_groups']) == 2 * (8 + 2)
    logs = [log.read_text() for log in tmp_path.rglob('*.log')]
    assert all('GPU number: 2' in log for log in logs)


def test_batches_that_were_trained_on_are_not_loaded(train, monkeypatch):
    train(train_cfg__max_iters=4)
    loaded = []
    prepare = BaseSegDataset.prepare_data

    def counted(self, index):
        if 'training' in self.data_prefix['img_path']:
            loaded.append(index)
        return prepare(self, index)

    monkeypatch.setattr(BaseSegDataset, 'prepare_data', counted)
    runner = train(resume=True)

    assert runner.iter == 6
    assert len(loaded) == 2 * 2


def numbered(rank: int, world_size: int, batch_size: int) -> list[tuple[int, int]]:
    """Number and index of the first 24 samples after the third batch."""
    order = np.random.default_rng(0).permutation(48).tolist()
    batches = NumberedBatches(
        BatchSampler(order[rank::world_size], batch_size, drop_last=False),
        first=lambda: 3,
        endless=True,
        rank=rank,
        world_size=world_size,
    )
    pairs = [pair for batch in islice(batches, 3) for pair in batch]
    return [(number, index) for index, number in pairs]


def test_processes_that_share_a_batch_number_its_samples_as_one_does():
    alone = numbered(0, 1, 8)

    assert [number for number, _ in alone] == list(range(24, 48))
    assert sorted(numbered(0, 2, 4) + numbered(1, 2, 4)) == alone


class Draws(list):
    def __getitem__(self, index):
        return random.random(), np.random.rand(), float(torch.rand(()))


def dealt(sampler, world_size: int, *, images: int, first: int, monkeypatch) -> list:
    """The samples of batches of 4 from one on, dealt to processes, sorted by number."""
    parts = []
    for rank in range(world_size):
        monkeypatch.setattr(
            'mmengine.dataset.sampler.get_dist_info',
            lambda rank=rank: (rank, world_size),
        )
        endless = sampler is InfiniteSampler
        batches = NumberedBatches(
            BatchSampler(sampler(range(images), seed=5), 4 // world_size, endless),
            first=lambda: first,
            endless=endless,
            rank=rank,
            world_size=world_size,
        )
        parts.append(islice(batches, 9))
    return [
        sorted((pair for part in step for pair in part), key=lambda pair: pair[1])
        for step in zip(*parts, strict=True)
    ]


@pytest.mark.parametrize('world_size', [2, 4])
def test_other_numbers_of_processes_go_on_with_the_same_samples(
    world_size: int, monkeypatch
):
    settings = dict(images=10, first=3, monkeypatch=monkeypatch)
    alone = dealt(InfiniteSampler, 1, **settings)
    assert len(alone) == 9
    assert dealt(InfiniteSampler, world_size, **settings) == alone


@pytest.mark.parametrize('world_size', [2, 4])
def test_within_an_epoch_too_if_they_share_its_images_evenly(
    world_size: int, monkeypatch
):
    settings = dict(images=16, first=5, monkeypatch=monkeypatch)
    alone = dealt(DefaultSampler, 1, **settings)
    assert len(alone) == 3
    assert dealt(DefaultSampler, world_size, **settings) == alone


def test_a_samples_generators_follow_from_its_number():
    dataset = SeededDataset(Draws(range(4)), seed=5)
    first, other, again = (dataset[1, number] for number in (7, 8, 7))

    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))
    assert SeededDataset(Draws(range(4)), seed=6)[1, 7] != first


def test_a_seeded_dataset_is_the_dataset_otherwise():
    inner = BaseSegDataset.__new__(BaseSegDataset)
    inner._metainfo = dict(classes=('road',))
    dataset = SeededDataset(inner, seed=0)

    assert dataset.metainfo == dict(classes=('road',))
    assert copy.deepcopy(dataset) is dataset
    assert pickle.loads(pickle.dumps(SeededDataset([1, 2], seed=0)))[1, 0] == 2


@pytest.mark.parametrize(
    ('purpose', 'expected'),
    [
        (STEP, [0.8558617444153458, 0.7321354605204562, 0.7831525492730713]),
        (SAMPLE, [0.2982597900725147, 0.12087543891520858, 0.026325126642284813]),
    ],
)
def test_numbers_are_those_of_version_0_1(purpose: int, expected: list[float]):
    seed_generators(0, purpose, 1, 0)

    drawn = [random.random(), np.random.rand(), float(torch.rand((), dtype=float))]
    assert drawn == expected
