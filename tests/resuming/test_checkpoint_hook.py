"""Checkpoints of runs that end at bad moments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mmengine.evaluator import Evaluator

from mmseg_twins.engine.whole_files import WholeFiles


class Killed(BaseException):
    """Ends a run as a signal would, past all handlers of exceptions."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob('*.pth'))


def validations(folder: Path) -> list[int]:
    rows = [
        json.loads(line)
        for file in sorted(folder.glob('*/vis_data/scalars.json'))
        for line in file.read_text().splitlines()
    ]
    return [row['step'] for row in rows if 'mIoU' in row]


def fail_at(monkeypatch, name: str) -> None:
    """Ends the run when a file of this name is to be written."""
    put = WholeFiles.put

    def checked(self, obj, filepath):
        if Path(filepath).name == name:
            raise Killed
        put(self, obj, filepath)

    monkeypatch.setattr(WholeFiles, 'put', checked)


def test_old_checkpoints_stay_until_new_ones_are_there(
    train, tmp_path: Path, monkeypatch
):
    with monkeypatch.context() as patch:
        fail_at(patch, 'iter_4.pth')
        with pytest.raises(Killed):
            train(default_hooks__checkpoint__max_keep_ckpts=1)
    assert names(tmp_path / 'run') == ['iter_2.pth']

    train(default_hooks__checkpoint__max_keep_ckpts=1, resume=True)
    assert names(tmp_path / 'run') == ['iter_6.pth']


def test_a_removal_that_was_cut_short_is_made_up_for(
    train, tmp_path: Path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(WholeFiles, 'remove_outdated', raise_when_outdated)
        with pytest.raises(Killed):
            train(default_hooks__checkpoint__max_keep_ckpts=1)
    assert names(tmp_path / 'run') == ['iter_2.pth', 'iter_4.pth']
    (tmp_path / 'run/.iter_6.pth.abcd_123.tmp').touch()

    train(default_hooks__checkpoint__max_keep_ckpts=1, resume=True)
    assert names(tmp_path / 'run') == ['iter_6.pth']
    assert list((tmp_path / 'run').glob('.*')) == []


def raise_when_outdated(self: WholeFiles) -> None:
    if self.outdated:
        raise Killed


def test_the_best_checkpoint_stays_until_a_better_one_is_there(
    train, tmp_path: Path, monkeypatch
):
    scores = iter([10.0, 20.0, 20.0])
    monkeypatch.setattr(Evaluator, 'evaluate', lambda *_: dict(mIoU=next(scores)))
    settings = dict(train_cfg__val_interval=2, train_cfg__max_iters=4)
    settings['default_hooks__checkpoint__save_best'] = 'mIoU'
    with monkeypatch.context() as patch:
        fail_at(patch, 'best_mIoU_iter_4.pth')
        with pytest.raises(Killed):
            train(**settings)
    kept = ['iter_2.pth', 'iter_4.pth']
    assert names(tmp_path / 'run') == ['best_mIoU_iter_2.pth', *kept]

    train(**settings, resume=True)
    assert names(tmp_path / 'run') == ['best_mIoU_iter_4.pth', *kept]


def test_a_validation_that_was_killed_is_repeated(train, tmp_path: Path, monkeypatch):
    settings = dict(train_cfg__val_interval=2, train_cfg__max_iters=4)
    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, 'evaluate', raise_killed)
        with pytest.raises(Killed):
            train(**settings)
    assert validations(tmp_path / 'run') == []

    train(**settings, resume=True)
    assert validations(tmp_path / 'run') == [2, 4]

    # One that has ended is not repeated.
    train(**settings, resume=True)
    assert validations(tmp_path / 'run') == [2, 4]


def raise_killed(*_) -> None:
    raise Killed


def test_mmengines_tools_skip_a_truncated_checkpoint_too(train, tmp_path: Path):
    train(train_cfg__max_iters=4)
    last = tmp_path / 'run/iter_4.pth'
    last.write_bytes(last.read_bytes()[:1000])

    # As mim does it: nothing but `resume` is set.
    runner = train(train_cfg__max_iters=4, resume=True)
    assert runner._load_from == str(tmp_path / 'run/iter_2.pth')
    assert last.stat().st_size > 1000
