"""Checkpoints of runs that end at bad moments."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from mmengine.evaluator import Evaluator

from mmseg_twins.engine import checkpoint_hook
from mmseg_twins.engine.checkpoint_hook import AtomicBackend, require_same
from mmseg_twins.engine.latest import digest
from mmseg_twins.errors import CheckpointError

EVERY_TWO = dict(train_cfg__val_interval=2, train_cfg__max_iters=4)
ONE = dict(default_hooks__checkpoint__max_keep_ckpts=1)


class Killed(BaseException):
    """Ends a run as a signal would, past all handlers of exceptions."""


def kill(*_) -> None:
    raise Killed


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob('*.pth'))


def validations(folder: Path) -> list[int]:
    rows = [
        json.loads(line)
        for file in sorted(folder.glob('*/vis_data/scalars.json'))
        for line in file.read_text().splitlines()
    ]
    return [row['step'] for row in rows if 'mIoU' in row]


def kill_at(monkeypatch, name: str) -> None:
    """Ends the run when a file of this name is to be written."""
    put = AtomicBackend.put

    def checked(self, obj, filepath):
        if Path(filepath).name == name:
            raise Killed
        put(self, obj, filepath)

    monkeypatch.setattr(AtomicBackend, 'put', checked)


def test_old_checkpoints_stay_until_new_ones_are_there(
    train, tmp_path: Path, monkeypatch
):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 'iter_4.pth')
        train(**ONE)
    assert names(tmp_path / 'run') == ['iter_2.pth']

    train(**ONE, resume=True)
    assert names(tmp_path / 'run') == ['iter_6.pth']


def test_a_resumed_run_removes_what_a_killed_one_could_not(
    train, tmp_path: Path, monkeypatch
):
    def kill_when_outdated(self: AtomicBackend) -> None:
        if self.outdated:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(AtomicBackend, 'remove_outdated', kill_when_outdated)
        train(**ONE)
    assert names(tmp_path / 'run') == ['iter_2.pth', 'iter_4.pth']
    (tmp_path / 'run/.iter_6.pth.abcd_123.tmp').touch()

    train(**ONE, resume=True)
    assert names(tmp_path / 'run') == ['iter_6.pth']
    assert list((tmp_path / 'run').glob('.*')) == []


def test_the_best_checkpoint_stays_until_a_better_one_is_there(
    train, tmp_path: Path, monkeypatch
):
    scores = iter([10.0, 20.0, 20.0])
    monkeypatch.setattr(Evaluator, 'evaluate', lambda *_: dict(mIoU=next(scores)))
    settings = dict(EVERY_TWO, default_hooks__checkpoint__save_best='mIoU')
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 'best_mIoU_iter_4.pth')
        train(**settings)
    kept = ['iter_2.pth', 'iter_4.pth']
    assert names(tmp_path / 'run') == ['best_mIoU_iter_2.pth', *kept]

    train(**settings, resume=True)
    assert names(tmp_path / 'run') == ['best_mIoU_iter_4.pth', *kept]


def test_only_a_validation_that_was_killed_is_repeated(
    train, tmp_path: Path, monkeypatch
):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Evaluator, 'evaluate', kill)
        train(**EVERY_TWO)
    assert validations(tmp_path / 'run') == []

    for _ in range(2):
        train(**EVERY_TWO, resume=True)
        assert validations(tmp_path / 'run') == [2, 4]


def test_resuming_without_the_command_skips_a_truncated_checkpoint_too(
    train, tmp_path: Path
):
    train(train_cfg__max_iters=4)
    last = tmp_path / 'run/iter_4.pth'
    last.write_bytes(last.read_bytes()[:1000])

    runner = train(train_cfg__max_iters=4, resume=True)  # all that mim sets
    assert runner._load_from == str(tmp_path / 'run/iter_2.pth')
    assert last.stat().st_size > 1000


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch):
    path = tmp_path / 'iter_2.pth'
    path.write_bytes(b'old')
    monkeypatch.setattr(Path, 'write_bytes', kill)
    with pytest.raises(Killed):
        AtomicBackend().put(b'new content', path)

    assert path.read_bytes() == b'old'
    assert list(tmp_path.iterdir()) == [path]


def test_removal_waits(tmp_path: Path):
    backend = AtomicBackend()
    file, folder = tmp_path / 'new/iter_2.pth', tmp_path / 'new/iter_4.pth'
    backend.put_text('text', file)
    folder.mkdir()
    for path in (file, folder, tmp_path / 'not there'):
        backend.remove(path)
    assert file.read_text() == 'text'
    assert folder.exists()

    backend.remove_outdated()
    assert list(file.parent.iterdir()) == []
    assert backend.outdated == []


def test_processes_that_find_different_checkpoints_all_say_which(monkeypatch):
    found = ['run/iter_8.pth', 'run/iter_8.pth', 'no checkpoint']
    monkeypatch.setattr(checkpoint_hook, 'all_gather_object', lambda each: found)
    for each in found:
        with pytest.raises(
            CheckpointError, match=r'0 finds run/iter_8\.pth, process 2'
        ):
            require_same(each, 'run')


def test_processes_that_find_other_content_under_one_name_say_so(
    train, tmp_path: Path, monkeypatch
):
    train(**{**EVERY_TWO, 'train_cfg__max_iters': 2})
    found = []

    def gather(each: str) -> list[str]:
        found.append(each)
        return [each, each]

    monkeypatch.setattr(checkpoint_hook, 'all_gather_object', gather)
    train(**EVERY_TWO, resume=True)
    path = tmp_path / 'run/iter_2.pth'
    content = digest(str(path))
    assert found[-1] == f'{path} (iteration 2{content})'
    assert re.fullmatch(r', content [0-9a-f]{8}', content)

    saved = torch.load(path, weights_only=True)
    torch.save(saved, path)
    assert digest(str(path)) == content
    next(iter(saved['state_dict'].values())).view(-1)[0] += 1e-6
    torch.save(saved, path)
    assert digest(str(path)) != content


@pytest.mark.parametrize('path', [None, 'https://host/iter_2.pth', 'no.pth', '.'])
def test_what_is_no_file_has_no_digest(path: str | None):
    assert digest(path) == ''
