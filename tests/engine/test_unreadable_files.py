"""Files that cannot be read are named, and a training goes on without them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset, ConcatDataset
from mmengine.runner import Runner
from PIL import Image

from builders import small_demo, train_demo
from mmseg_twins.cli.common import sentence
from mmseg_twins.engine import UnreadableFiles
from mmseg_twins.engine.unreadable_files import WatchedPipeline, check_size, datasets
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
    path.write_bytes(b'This is not an image.' * 99)


def of_another_size(path: Path) -> None:
    Image.fromarray(np.ones((9, 7), np.uint8)).save(path)


@pytest.mark.parametrize(
    ('kind', 'damage', 'reason'),
    [
        ('images', empty, 'it is empty'),
        ('images', no_image, 'it is not an image'),
        ('annotations', missing, 'No such file'),
        ('annotations', no_image, 'it is not an image'),
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
    with pytest.raises(DataError, match=r'cannot be read \(it is not an image'):
        run(data, tmp_path, default_hooks__unreadable__max_in_a_row=0)


def test_in_a_validation_it_is_an_error(data: Path, tmp_path: Path):
    path = images(data, part='validation')[0]
    no_image(path)
    with pytest.raises(DataError, match=path.name):
        run(data, tmp_path, train_cfg__val_interval=1)


def test_workers_name_a_file_once_together(data: Path, tmp_path: Path):
    path = images(data)[0]
    empty(path)
    run(data, tmp_path, train_dataloader__num_workers=2)

    assert log(tmp_path).count(f'{path} cannot be read') == 1


def test_what_a_worker_raises_is_one_sentence(data: Path, tmp_path: Path):
    for path in images(data):
        no_image(path)
    with pytest.raises(DataError) as raised:
        run(data, tmp_path, train_dataloader__num_workers=1)

    said = sentence(raised.value)
    assert said.startswith('10 samples in a row cannot be read')
    assert said.endswith('check that the disk is there')


def test_other_errors_are_raised_as_they_are(data: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr('mmseg.datasets.PackSegInputs.transform', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(data, tmp_path)


class Numbers(BaseDataset):
    """Samples without files."""

    def load_data_list(self) -> list[dict]:
        return [dict(img=number) for number in range(3)]


def test_what_an_augmentation_refuses_is_replaced_without_a_word(caplog):
    dataset = Numbers(pipeline=[lambda sample: sample if sample['img'] != 1 else None])
    dataset.pipeline = WatchedPipeline(dataset.pipeline, torch.zeros(3).bool(), 1)

    assert all(dataset[1]['img'] != 1 for _ in range(5))
    assert caplog.text == ''


def test_datasets_in_others_are_found():
    inner = [Numbers(), Numbers()]
    assert list(datasets(ConcatDataset(inner))) == inner
    assert list(datasets([1, 2])) == []


@pytest.mark.parametrize('known', [{}, dict(ori_shape=(3, 8, 9))])
def test_sizes_that_cannot_be_compared_are_none_of_its_business(known: dict):
    check_size('a', dict(seg_map_path='a', gt_seg_map=np.zeros((3, 4)), **known))


@pytest.mark.parametrize('value', [-1, 2.5, 'all'])
def test_a_number_that_makes_no_sense_is_refused(value):
    with pytest.raises(SettingError, match='max_in_a_row='):
        UnreadableFiles(value)
