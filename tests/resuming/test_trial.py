"""The trial by kills, and that it can tell a good training from a bad one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from faults import MOMENTS, Kill
from faults.trial import Outcome, Result, Trial, equal

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 1])
def test_a_training_survives_a_kill_of_each_kind(workers: int, tmp_path: Path):
    trial = Trial(tmp_path / 'trial', root=ROOT, kills=7, workers=workers, seed=3)
    result = trial.run()

    assert result.is_good, result.table()
    assert all(result.outcomes[moment].tried == 1 for moment in MOMENTS)
    assert len(result.compared) >= 7


def test_a_moment_that_is_none_is_named():
    with pytest.raises(
        ValueError, match="Kill: moment='lunch' is none of 'step', 'val"
    ):
        Kill(moment='lunch', at=2)


@pytest.mark.parametrize(
    ('given', 'said'),
    [
        (dict(kills=0), '--kills: 0; give 1 or more'),
        (dict(kills=1, workers=-1), '--workers: -1; give 0 or more'),
        (dict(kills=1), 'is not empty; give a new folder'),
    ],
)
def test_mistakes_are_said(given: dict, said: str, tmp_path: Path):
    (tmp_path / 'mine').touch()
    with pytest.raises(ValueError, match=said):
        Trial(tmp_path, root=ROOT, **given)


@pytest.mark.parametrize(
    ('other', 'expected'),
    [
        ({'a': [torch.ones(2), 1]}, True),
        ({'a': [torch.tensor([1.0, 1.0 + 2**-23]), 1]}, False),
        ({'a': [torch.ones(2), 2]}, False),
        ({'a': [torch.ones(2)]}, False),
        ({'b': [torch.ones(2), 1]}, False),
    ],
)
def test_one_bit_is_a_difference(other: dict, expected: bool):
    assert equal({'a': [torch.ones(2), 1]}, other) is expected


def test_a_result_is_good_where_all_is_survived_and_equal():
    survived = dict(outcomes={'step': Outcome(tried=2, survived=2)})

    assert Result(**survived).is_good
    assert not Result(**survived, different={'iter_2.pth'}).is_good
    assert not Result(**survived, lost=['a validation']).is_good
    assert not Result({'step': Outcome(tried=2, survived=1)}).is_good


def test_the_table_has_a_row_for_each_moment():
    table = Result({'step': Outcome(2, 1, 3)}, different={'iter_2.pth'}).table()

    assert '| during a training step | 2 | 1 | 3 |' in table
    assert "iter_2.pth']" in table
