"""Which checkpoint a run is resumed from."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch

from mmseg_twins.cli.train import main
from mmseg_twins.engine import latest
from mmseg_twins.engine.latest import find_whole_checkpoint
from mmseg_twins.errors import CheckpointError


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


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.find(torch.arange(1000.0).numpy().tobytes()) + 40] ^= 1
    path.write_bytes(content)


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found = []

    def print_log(text: str, logger: str, level: int) -> None:
        assert level == logging.WARNING
        found.append(text)

    monkeypatch.setattr(latest, 'print_log', print_log)
    return found


def test_the_noted_checkpoint_is_found(tmp_path: Path, warnings: list[str]):
    write(tmp_path / 'iter_2.pth')
    note(write(tmp_path / 'iter_4.pth'))

    assert find_whole_checkpoint(tmp_path) == str(tmp_path / 'iter_4.pth')
    assert warnings == []


@pytest.mark.parametrize(
    ('spoil', 'says'),
    [
        (truncate, 'iter_10.pth is truncated'),
        (change_a_byte, "is damaged: its part 'iter_10/data/0' has changed"),
        (Path.unlink, 'iter_10.pth does not exist'),
    ],
)
def test_a_damaged_checkpoint_is_skipped_with_a_warning(
    spoil, says: str, tmp_path: Path, warnings: list[str]
):
    for number in (2, 8, 10):
        path = write(tmp_path / f'iter_{number}.pth')
    spoil(path)
    note(path)

    assert find_whole_checkpoint(tmp_path) == str(tmp_path / 'iter_8.pth')
    (warning,) = warnings
    assert says in warning


@pytest.mark.parametrize('content', [None, ''])
def test_without_a_note_the_largest_number_is_found(
    content: str | None, tmp_path: Path
):
    for name in ('iter_2', 'iter_10', 'iter_9', 'best_mIoU_iter_12'):
        write(tmp_path / f'{name}.pth')
    if content is not None:
        (tmp_path / 'last_checkpoint').write_text(content)

    assert find_whole_checkpoint(tmp_path) == str(tmp_path / 'iter_10.pth')


@pytest.mark.parametrize(
    ('age', 'found'), [(-1, 'iter_4.pth'), (100, 'iter_2.pth')], ids=['newer', 'older']
)
def test_larger_numbers_than_the_noted_one_are_the_runs_if_newer(
    age: int, found: str, tmp_path: Path
):
    note(write(tmp_path / 'iter_2.pth', age=10))
    write(tmp_path / 'iter_4.pth', age=age)

    assert find_whole_checkpoint(tmp_path) == str(tmp_path / found)


def test_a_folder_may_be_moved(tmp_path: Path):
    write(tmp_path / 'iter_2.pth')
    note(Path('somewhere/else/iter_2.pth'), tmp_path)

    assert find_whole_checkpoint(tmp_path) == str(tmp_path / 'iter_2.pth')


def test_a_new_folder_has_none(tmp_path: Path):
    assert find_whole_checkpoint(tmp_path / 'new') is None


def test_damaged_checkpoints_are_each_named_if_there_is_no_other(tmp_path: Path):
    for number in (2, 4):
        truncate(write(tmp_path / f'iter_{number}.pth'))
    note(tmp_path / 'iter_4.pth')

    with pytest.raises(CheckpointError, match=r'iter_4.pth is tr.*iter_2.pth is tr'):
        find_whole_checkpoint(tmp_path)


def test_training_says_in_one_sentence_that_nothing_is_whole(
    tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    Path('config.py').write_text("work_dir = 'runs'\n")
    truncate(write(Path('runs/iter_2.pth')))
    note(Path('runs/iter_2.pth'))

    with pytest.raises(SystemExit) as exit_:
        main(['config.py', '--resume'])

    assert exit_.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith('train.py: error: no checkpoint in runs is intact')
    assert Path('runs/iter_2.pth').exists()
