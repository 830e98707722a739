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


def train_line(step: int, loss: float, **more: float) -> str:
    return json.dumps(dict(loss=loss, time=1.5, step=step, **more))


def test_a_resumed_training_is_one_and_repeated_iterations_count_once(tmp_path):
    parts = {
        '20260101_000000': [
            train_line(20, 3.0, memory=900),
            json.dumps(dict(mIoU=10.0, step=20)),
            train_line(40, 2.5),
            json.dumps(dict(mIoU=11.0, step=40)),
        ],
        '20260101_010000': [
            train_line(40, 2.0, memory=800),
            json.dumps(dict(mIoU=20.0, step=40)),
        ],
    }
    for name, lines in parts.items():
        log = tmp_path / name / 'vis_data' / 'scalars.json'
        log.parent.mkdir(parents=True)
        log.write_text('\n'.join(lines))
    run = compare_runs.read_run(tmp_path)
    assert run.miou == {20: 10.0, 40: 20.0}
    assert run.loss == {20: 3.0, 40: 2.0}
    assert run.minutes == {20: 0.5, 40: 1.0}
    assert run.minutes_at([30]) == [0.75]
    assert run.memory == 900


def test_evaluations_by_epoch_get_the_iteration_after_which_they_ran(tmp_path):
    log = tmp_path / '20260101_000000' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    evaluation = json.dumps(dict(mIoU=10.0, step=1))
    log.write_text('\n'.join([train_line(50, 2.0), evaluation]))
    assert compare_runs.read_run(tmp_path).miou == {50: 10.0}


def test_losses_and_minutes_are_drawn_and_printed_where_they_were_logged(
    tmp_path, capsys
):
    log = tmp_path / 'x' / '20260101_000000' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    lines = [train_line(step, 3 - step / 40, memory=512) for step in (20, 40)]
    log.write_text('\n'.join([*lines, json.dumps(dict(mIoU=50.0, step=40))]))
    out = tmp_path / 'curves.png'
    assert compare_runs.main([f'x={tmp_path / "x"}', '--out', str(out)]) == 0
    assert '50.0 % at 40; 1.0 minutes; 512 MB' in capsys.readouterr().out
    with Image.open(out) as picture:
        assert picture.height > 900  # two rows of curves


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
        ('nothing', 'is not of the form NAME=WORK_DIR'),
        ('x=nowhere', 'is not the work dir of a training'),
    ],
)
def test_runs_that_are_none_get_one_sentence(run, said, capsys):
    with pytest.raises(SystemExit) as exit_:
        compare_runs.main([run])
    assert exit_.value.code == 2
    assert said in capsys.readouterr().err
