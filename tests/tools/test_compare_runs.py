"""``tools/analysis_tools/compare_runs.py``: which training is better, and from when."""

from __future__ import annotations

import json
from pathlib import Path

import compare_runs
import pytest
from PIL import Image


def write_log(folder: Path, values: dict[int, float]) -> Path:
    log = folder / '20260101_000000' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    lines = [dict(mIoU=value, step=step) for step, value in values.items()]
    log.write_text('\n'.join(map(json.dumps, lines)))
    return folder


def test_the_first_evaluation_that_reaches_a_value_counts():
    run = {10: 20.0, 20: 55.0, 30: 48.0, 40: 60.0}
    reached = [compare_runs.iterations_to_reach(run, miou) for miou in (50, 55, 61)]
    assert reached == [20, 20, None]


def test_trainings_are_compared_in_a_table_and_a_picture(tmp_path, capsys):
    fast = [write_log(tmp_path / f'fast_{i}', {10: 40.0, 20: 60.0 + i}) for i in (0, 1)]
    slow = write_log(tmp_path / 'slow', {10: 10.0, 20: 30.0})
    out = tmp_path / 'curves.png'
    runs = [f'fast={fast[0]}', f'fast={fast[1]}', f'slow={slow}']
    assert compare_runs.main([*runs, '--out', str(out), '--reach', '40']) == 0
    said = capsys.readouterr().out
    assert '61.0 % at 20; 40 % first at 10' in said
    assert '40 % first at no evaluation' in said
    with Image.open(out) as picture:
        assert picture.width > 900
    with pytest.raises(SystemExit) as exit_:
        compare_runs.main([*runs, '--out', str(out)])
    assert exit_.value.code == 2
    assert 'exists already; --force replaces it' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('run', 'said'),
    [
        ('nothing', 'is no NAME=WORK_DIR'),
        ('x=nowhere', 'is not the work dir of a training'),
    ],
)
def test_runs_that_are_none_get_one_sentence(run, said, capsys):
    with pytest.raises(SystemExit) as exit_:
        compare_runs.main([run])
    assert exit_.value.code == 2
    assert said in capsys.readouterr().err
