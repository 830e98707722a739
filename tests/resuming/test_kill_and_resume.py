"""The trial by kills, and that it can tell a good training from a bad one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from kill_and_resume import MOMENTS, SIGNALS, Trial, equal, main


@pytest.mark.slow
def test_a_training_survives_a_kill_of_each_kind(tmp_path: Path):
    trial = Trial(tmp_path, kills=11, workers=1, seed=3)
    trial.run()

    assert trial.is_good, trial.table()
    assert all(trial.tried[moment] == 1 for moment in (*MOMENTS, *SIGNALS))
    assert len(trial.compared) >= 9


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path, capsys):
    (tmp_path / 'mine').touch()
    with pytest.raises(SystemExit):
        main(['--work-dir', str(tmp_path)])
    assert 'is not empty' in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ('survived', 'problems', 'is_good'),
    [(2, [], True), (1, [], False), (2, ['iter_2.pth differs'], False)],
)
def test_a_trial_is_good_if_all_is_survived_and_equal(survived, problems, is_good):
    trial = Trial.__new__(Trial)
    trial.tried, trial.survived = Counter(step=2), Counter(step=survived)
    trial.repeated, trial.compared = Counter(step=3), {'iter_2.pth'}
    trial.problems = problems

    assert trial.is_good is is_good
    assert f'| during a training step | 2 | {survived} | 3 |' in trial.table()
    assert trial.table().endswith(f'problems: {"; ".join(problems) or "none"}')
