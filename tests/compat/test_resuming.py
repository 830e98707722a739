"""Loops that drop the finished batches, that skip them, and that do neither."""

from __future__ import annotations

import inspect

import pytest
import torch
from mmengine.runner import IterBasedTrainLoop
from torch.utils.data import DataLoader

from mmseg_twins.engine.exact_resume import RemainingBatches

skips = 'fast_forward_on_resume' in inspect.signature(IterBasedTrainLoop).parameters


@pytest.fixture
def loader() -> DataLoader:
    """Starts with batch 2 of a training."""
    return DataLoader([2, 3], batch_size=None)


def test_a_loop_that_drops_finished_batches_gets_them_first(loader):
    assert list(RemainingBatches(loader, dropped=2)) == [None, None, 2, 3]


def test_a_loop_that_skips_finished_batches_goes_on_with_the_next(loader):
    batches = RemainingBatches(loader, dropped=0)
    batches.skip_iter(2)
    assert list(batches) == [2, 3]


def test_nothing_is_loaded_after_the_training(loader):
    batches = RemainingBatches(loader, dropped=0)
    assert next(batches) == 2
    batches.close()
    assert list(batches) == []


@pytest.mark.skipif(not skips, reason='needs the loop of onedl-mmengine')
def test_a_loop_that_goes_on_at_once_ends_at_the_same_weights(train):
    whole = train('whole')
    train(train_cfg__max_iters=4)
    resumed = train(resume=True, train_cfg__fast_forward_on_resume=True)

    expected = whole.model.state_dict()
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, expected[name]), name
