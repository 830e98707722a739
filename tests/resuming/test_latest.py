"""Which checkpoint a run goes on from."""

from __future__ import annotations

import logging
import os
import runpy
import sys
from pathlib import Path

import pytest
import torch

from mmseg_twins.engine import latest
from mmseg_twins.engine.latest import NoWholeCheckpointError, find_whole_checkpoint

ROOT = Path(__file__).parents[2]


def write(path: Path, *, age: int = 0) -> Path:
    """A checkpoint written ``age`` seconds before the last ones."""
    path.parent.mkdir(exist_ok=True)
    torch.save({'weight': torch.arange(1000.0)}, path)
    os.utime(path, (1_000_000 - age, 1_000_000 - age))
    return path


def note(path: Path, folder: Path | None = None) -> None:
    """Lets ``last_checkpoint`` name a file."""
    last = (folder or path.parent) / 'last_checkpoint'
    last.write_text(str(path))
    os.utime(last, (1_000_000, 1_000_000))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    found = []
    monkeypatch.setattr(
        latest, 'print_log', lambda text, logger, level: found.append((text, level))
    )
    return found


def test_the_noted_checkpoint_is_found(tmp_path: Path, said: list):
    write(tmp_path / 'iter_2.pth')
    note(write(tmp_path / 'iter_4.pth'))

    assert find_whole_checkpoint(tmp_path) == str(tmp_path / 'iter_4.pth')
    assert said == []


def test_a_truncated_checkpoint_is_skipped_with_a_warning(tmp_path: Path, said: list):
    for number in (2, 8, 10):
        path = write(tmp_path / f'iter_{number}.pth')
    truncate(path)
    note(path)

    assert find_whole_checkpoint(tmp_path) == str(tmp_path / 'iter_8.pth')
    ((text, level),) = said
    assert level == logging.WARNING
    assert 'iter_10.pth is truncated' in text


def test_a_changed_byte_is_noticed(tmp_path: Path, said: list):
    write(tmp_path / 'epoch_1.pth')
    path = write(tmp_path / 'epoch_2.pth')
    content = bytearray(path.read_bytes())
    content[content.find(torch.arange(1000.0).numpy().tobytes()) + 40] ^= 1
    path.write_bytes(content)
    note(path)

    assert find_whole_checkpoint(tmp_path) == str(tmp_path / 'epoch_1.pth')
    assert "is damaged: its part 'epoch_2/data/0' has changed" in said[0][0]


@pytest.mark.parametrize('content', [None, ''])
def test_without_a_note_the_largest_number_is_found(
    content: str | None, tmp_path: Path
):
    for name in ('iter_2', 'iter_10', 'iter_9', 'best_mIoU_iter_12'):
        write(tmp_path / f'{name}.pth')
    if content is not None:
        (tmp_path / 'last_checkpoint').write_text(content)

    assert find_whole_checkpoint(tmp_path) == str(tmp_path / 'iter_10.pth')


def test_a_checkpoint_that_could_not_be_noted_any_more_is_found(tmp_path: Path):
    note(write(tmp_path / 'iter_2.pth', age=10))
    write(tmp_path / 'iter_4.pth', age=-1)

    assert find_whole_checkpoint(tmp_path) == str(tmp_path / 'iter_4.pth')


def test_an_earlier_runs_checkpoints_are_left_alone(tmp_path: Path):
    note(write(tmp_path / 'iter_2.pth'))
    write(tmp_path / 'iter_4.pth', age=100)

    assert find_whole_checkpoint(tmp_path) == str(tmp_path / 'iter_2.pth')


def test_a_folder_may_be_moved(tmp_path: Path):
    write(tmp_path / 'iter_2.pth')
    note(Path('somewhere/else/iter_2.pth'), tmp_path)

    assert find_whole_checkpoint(tmp_path) == str(tmp_path / 'iter_2.pth')


def test_a_new_folder_has_none(tmp_path: Path):
    assert find_whole_checkpoint(tmp_path / 'new') is None


def test_damaged_checkpoints_only_are_each_named(tmp_path: Path):
    for number in (2, 4):
        truncate(write(tmp_path / f'iter_{number}.pth'))
    note(tmp_path / 'iter_4.pth')

    with pytest.raises(
        NoWholeCheckpointError,
        match=r'iter_4.pth is truncated.*iter_2.pth is truncated',
    ):
        find_whole_checkpoint(tmp_path)


def test_training_says_in_one_sentence_that_nothing_is_whole(
    tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path('config.py').write_text("work_dir = 'runs'\n")
    truncate(write(Path('runs/iter_2.pth')))
    note(Path('runs/iter_2.pth'))
    monkeypatch.setattr(sys, 'argv', ['train.py', 'config.py', '--resume'])
    monkeypatch.setenv('LOCAL_RANK', '0')

    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(ROOT / 'tools/train.py'), run_name='__main__')

    assert exit_.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith('train.py: error: no checkpoint in runs is whole')
    assert Path('runs/iter_2.pth').exists()
