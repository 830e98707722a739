"""Files that cannot be read are named, and a training goes on without them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from PIL import Image

from builders import small_demo, train_demo
from mmseg_twins.engine import UnreadableFiles
from mmseg_twins.errors import DataError, SettingError

HOOK = dict(default_hooks__unreadable=dict(type='mmseg_twins.UnreadableFiles'))


@pytest.fixture
def data(scenes: Path, tmp_path: Path) -> Path:
    """A copy of the scenes that a test may damage."""
    return Path(shutil.copytree(scenes, tmp_path / 'data'))


def images(data: Path, kind: str = 'images', part: str = 'training') -> list[Path]:
    return sorted((data / kind / part).iterdir())


def run(data: Path, tmp_path: Path, name: str = 'run', **settings) -> Runner:
    length = dict(train_cfg__max_iters=6, train_cfg__val_interval=9)
    saved = dict(default_hooks__checkpoint__interval=2, param_scheduler=[])
    settings = {**HOOK, **length, **saved, 'log_level': 'INFO', **settings}
    return train_demo(small_demo(data), tmp_path, name, **settings)


def log(tmp_path: Path, name: str = 'run') -> str:
    return ''.join(file.read_text() for file in (tmp_path / name).rglob('*.log'))


def missing(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b'')


def no_image(path: Path) -> None:
    path.write_bytes(b'This is no image.' * 99)


def of_another_size(path: Path) -> None:
    Image.fromarray(np.ones((9, 7), np.uint8)).save(path)


@pytest.mark.parametrize(
    ('kind', 'damage', 'reason'),
    [
        ('images', empty, 'it is empty'),
        ('images', no_image, 'it is no image'),
        ('annotations', missing, 'No such file'),
        ('annotations', no_image, 'it is no image'),
        ('annotations', of_another_size, 'it is 7x9 px, its image'),
    ],
)
def test_a_file_of_the_training_is_skipped_and_named_once(
    data: Path, tmp_path: Path, kind: str, damage, reason: str
):
    path = images(data, kind)[0]
    damage(path)
    run(data, tmp_path)
    lines = [line for line in log(tmp_path).splitlines() if path.name in line]
    (line,) = (each for each in lines if 'another sample takes its place' in each)
    assert str(path) in line
    assert reason in line


def test_a_resumed_training_takes_the_same_samples_instead(data: Path, tmp_path: Path):
    no_image(images(data)[0])
    run(data, tmp_path, train_cfg__max_iters=4)
    resumed, whole = run(data, tmp_path, resume=True), run(data, tmp_path, 'whole')
    for first, second in zip(
        resumed.model.parameters(), whole.model.parameters(), strict=True
    ):
        assert torch.equal(first, second)


def test_a_training_without_any_readable_file_ends(data: Path, tmp_path: Path):
    for path in images(data):
        no_image(path)
    with pytest.raises(DataError, match='10 samples in a row cannot be read, the last'):
        run(data, tmp_path)


def test_the_first_file_ends_it_where_none_is_to_be_skipped(data: Path, tmp_path: Path):
    for path in images(data):
        no_image(path)
    with pytest.raises(DataError, match=r'cannot be read \(it is no image'):
        run(data, tmp_path, default_hooks__unreadable__max_in_a_row=0)


def test_in_a_validation_it_is_an_error(data: Path, tmp_path: Path):
    path = images(data, part='validation')[0]
    no_image(path)
    with pytest.raises(DataError, match=path.name):
        run(data, tmp_path, train_cfg__val_interval=1)


@pytest.mark.parametrize('value', [-1, 2.5, 'all'])
def test_a_number_that_makes_no_sense_is_refused(value):
    with pytest.raises(SettingError, match='max_in_a_row='):
        UnreadableFiles(value)
