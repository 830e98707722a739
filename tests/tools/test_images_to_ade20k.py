"""``tools/dataset_converters/images_to_ade20k.py``: images of one's own as ADE20K."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / 'tools/dataset_converters/images_to_ade20k.py'
NAMES = ('first', 'second', 'third')


def write_pair(source: Path, name: str, *, size: tuple[int, int] = (40, 30)) -> None:
    Image.new('RGB', size, color=(9, 99, 199)).save(source / 'images' / f'{name}.jpg')
    labels = np.zeros(size[::-1], dtype=np.uint8)
    labels[5:] = 150
    Image.fromarray(labels).save(source / 'annotations' / f'{name}.png')


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / 'source'
    for kind in ('images', 'annotations'):
        (folder / kind).mkdir(parents=True)
    for name in NAMES:
        write_pair(folder, name)
    return folder


def lay_out(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, 'argv', [SCRIPT.name, *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name='__main__')


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_all_images_are_for_training_and_validation(
    source: Path, tmp_path: Path, monkeypatch, capsys
):
    target = tmp_path / 'ade'
    lay_out(monkeypatch, source, '--out', target)

    for part in ('training', 'validation'):
        assert names(target / 'images' / part) == [f'{name}.jpg' for name in NAMES]
        assert names(target / 'annotations' / part) == [f'{name}.png' for name in NAMES]
    copy = target / 'annotations/validation/second.png'
    assert copy.read_bytes() == (source / 'annotations/second.png').read_bytes()
    assert '3 images for training, 3 for validation (the same images)' in (
        capsys.readouterr().out
    )


def test_the_recipes_find_the_default_folder(source: Path, tmp_path: Path, monkeypatch):
    from mmengine.config import Config

    monkeypatch.chdir(tmp_path)
    lay_out(monkeypatch, source)

    configs = SCRIPT.parents[2] / 'configs'
    recipe = configs / 'twins_svt-s_fpn_fpnhead_8x4_512x512_80k_ade20k.py'
    cfg = Config.fromfile(recipe)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        dataset = loader.dataset
        for prefix in dataset.data_prefix.values():
            assert len(names(Path(dataset.data_root, prefix))) == 3


def test_held_out_images_are_for_validation_only(
    source: Path, tmp_path: Path, monkeypatch, capsys
):
    target = tmp_path / 'ade'
    lay_out(monkeypatch, source, '--out', target, '--held-out', 1)

    assert names(target / 'images/training') == ['first.jpg', 'second.jpg']
    assert names(target / 'images/validation') == ['third.jpg']
    assert names(target / 'annotations/validation') == ['third.png']
    assert '2 images for training, 1 for validation\n' in capsys.readouterr().out


def test_symlink_links_to_the_sources(source: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lay_out(monkeypatch, 'source', '--out', 'ade', '--symlink')

    link = tmp_path / 'ade/images/training/first.jpg'
    assert link.is_symlink()
    assert link.resolve() == source / 'images/first.jpg'


def test_existing_files_stay_as_they_are(
    source: Path, tmp_path: Path, monkeypatch, capsys
):
    target = tmp_path / 'ade'
    target.mkdir()
    (target / 'mine.txt').write_text('mine')

    with pytest.raises(SystemExit) as exit_:
        lay_out(monkeypatch, source, '--out', target)

    assert exit_.value.code == 2
    assert names(target) == ['mine.txt']
    assert 'is not empty; give a new folder' in capsys.readouterr().err


def without_annotation(source: Path) -> None:
    (source / 'annotations/second.png').unlink()


def without_image(source: Path) -> None:
    (source / 'images/second.jpg').unlink()


def without_folder(source: Path) -> None:
    (source / 'annotations').rename(source / 'labels')


def without_images(source: Path) -> None:
    for folder in ('images', 'annotations'):
        for path in (source / folder).iterdir():
            path.unlink()


def png_image(source: Path) -> None:
    (source / 'images/second.jpg').rename(source / 'images/second.png')


def colored_annotation(source: Path) -> None:
    Image.new('RGB', (40, 30)).save(source / 'annotations/second.png')


def jpeg_annotation(source: Path) -> None:
    Image.new('L', (40, 30)).save(source / 'annotations/second.png', format='JPEG')


def annotation_of_another_size(source: Path) -> None:
    Image.new('L', (30, 40)).save(source / 'annotations/second.png')


def class_number_151(source: Path) -> None:
    Image.new('L', (40, 30), color=151).save(source / 'annotations/second.png')


def broken_image(source: Path) -> None:
    (source / 'images/second.jpg').write_bytes(b'no image')


@pytest.mark.parametrize(
    ('spoil', 'said'),
    [
        (without_annotation, "the image 'second' has no annotation"),
        (without_image, "the annotation 'second' has no image"),
        (without_folder, 'SOURCE needs images/ and annotations/'),
        (without_images, 'there is no image in'),
        (png_image, "'second.png' in"),
        (colored_annotation, 'is PNG with mode RGB'),
        (jpeg_annotation, 'is JPEG with mode L'),
        (annotation_of_another_size, 'has 30x40 px, its image 40x30'),
        (class_number_151, 'has the label 151; labels are 0 (other) to 150'),
        (broken_image, "'second': image or annotation cannot be read"),
    ],
)
def test_bad_sources_get_one_sentence_and_nothing_is_written(
    spoil, said: str, source: Path, tmp_path: Path, monkeypatch, capsys
):
    spoil(source)

    with pytest.raises(SystemExit) as exit_:
        lay_out(monkeypatch, source, '--out', tmp_path / 'ade')

    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert error.startswith('images_to_ade20k.py: error: ')
    assert error.count('\n') == 1
    assert said in error
    assert not (tmp_path / 'ade').exists()


@pytest.mark.parametrize('held_out', [-1, 3])
def test_held_out_leaves_images_for_training(
    held_out: int, source: Path, tmp_path: Path, monkeypatch, capsys
):
    with pytest.raises(SystemExit) as exit_:
        lay_out(monkeypatch, source, '--out', tmp_path / 'a', f'--held-out={held_out}')

    assert exit_.value.code == 2
    assert f'--held-out: {held_out} of 3 images; give 0 to 2' in capsys.readouterr().err
    assert not (tmp_path / 'a').exists()
