"""The quickstart's scenes, their folder, and the command itself."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import quickstart
import scene_folder
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.registry import DATASETS
from PIL import Image
from scene_canvas import MOODS, Label
from scene_drawing import Street
from scene_folder import CLASSES, write_scenes

ROOT = Path(__file__).parents[2]
SIZE = (96, 64)


@pytest.fixture(scope='module')
def scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    moods = 3 * list(MOODS)
    return [Street((0, 0, i), mood, SIZE).draw() for i, mood in enumerate(moods)]


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('streets') / 'data'
    write_scenes(root, training=3, validation=2, size=SIZE)
    return root


def labels_of(folder: Path) -> list[np.ndarray]:
    files = sorted(folder.glob('annotations/*/*.png'))
    return [np.array(Image.open(file)) for file in files]


def test_equal_seeds_give_equal_scenes(scenes):
    image, labels = Street((0, 0, 0), next(iter(MOODS)), SIZE).draw()
    assert np.array_equal(image, scenes[0][0])
    assert np.array_equal(labels, scenes[0][1])
    assert len({image.tobytes() for image, _ in scenes}) == len(scenes)


def test_every_class_occurs_and_none_is_all_there_is(scenes):
    pixels = np.stack([labels for _, labels in scenes])
    shares = np.bincount(pixels.ravel(), minlength=len(Label)) / pixels.size
    assert len(shares) == len(Label)
    assert shares[1:].min() > 0.005
    assert shares.max() < 0.5
    assert shares[Label.OTHER] < 0.05


def test_the_layout_is_ade20ks(folder):
    for split, count in (('training', 3), ('validation', 2)):
        images = sorted((folder / 'images' / split).iterdir())
        annotations = sorted((folder / 'annotations' / split).iterdir())
        assert [file.stem for file in images] == [file.stem for file in annotations]
        assert len(images) == count
        for image, annotation in zip(images, annotations, strict=True):
            with Image.open(image) as picture, Image.open(annotation) as labels:
                assert (picture.format, picture.mode) == ('JPEG', 'RGB')
                assert (labels.format, labels.mode) == ('PNG', 'L')
                assert picture.size == labels.size == SIZE
    pictures = {file.read_bytes() for file in folder.glob('images/*/*.jpg')}
    assert len(pictures) == 5


def test_classes_that_are_left_out_become_zero(folder, tmp_path):
    arguments = '--training 3 --validation 2 --size 96 64 --classes car road'
    scene_folder.main([str(tmp_path / 'data'), *arguments.split()])
    for few, all_ in zip(labels_of(tmp_path / 'data'), labels_of(folder), strict=True):
        numbers = np.zeros(len(Label), np.uint8)
        numbers[[Label.CAR, Label.ROAD]] = 1, 2
        assert np.array_equal(few, numbers[all_])


def test_the_config_counts_classes_from_zero_and_ignores_the_rest(folder):
    cfg = Config.fromfile(ROOT / 'configs/demo/twins_svt_fpn_streets.py')
    assert tuple(cfg.classes) == CLASSES
    assert cfg.data_preprocessor == cfg.model.data_preprocessor
    cfg.val_dataloader.dataset.data_root = str(folder)
    with DefaultScope.overwrite_default_scope('mmseg'):
        sample = DATASETS.build(cfg.val_dataloader.dataset)[0]['data_samples']
    labels = labels_of(folder / 'annotations' / '..')[3]
    assert np.array_equal(sample.gt_sem_seg.data[0].numpy(), labels - 1)


def test_existing_files_are_never_overwritten(tmp_path):
    (tmp_path / 'mine.txt').write_text('keep')
    with pytest.raises(ValueError, match='nothing in it is overwritten'):
        write_scenes(tmp_path, training=1, validation=1, size=SIZE)
    assert [file.name for file in tmp_path.iterdir()] == ['mine.txt']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(training=0), 'training is 0'),
        (dict(seed=-1), 'seed is -1'),
        (dict(size=(32, 64)), 'at least 64'),
        (dict(classes=['cat']), 'unknown classes: cat; give some of'),
    ],
)
def test_scenes_that_cannot_be_drawn_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_scenes(tmp_path / 'data', **dict(training=1, validation=1) | arguments)
    assert not list(tmp_path.iterdir())


def test_results_of_an_earlier_run_are_moved_and_kept(tmp_path):
    (tmp_path / 'mine.txt').write_text('keep')
    for number in (1, 2):
        (tmp_path / 'scenes.png').write_text(f'picture {number}')
        assert quickstart.set_aside(tmp_path) == tmp_path / f'earlier_{number}'
    kept = sorted(file.read_text() for file in tmp_path.glob('earlier_*/scenes.png'))
    assert kept == ['picture 1', 'picture 2']
    assert (tmp_path / 'mine.txt').read_text() == 'keep'
    assert quickstart.set_aside(tmp_path) is None


@pytest.mark.parametrize(
    'options', ['--validation 5', '--max-iters 1', '--training 0', '--work-dir {file}']
)
def test_options_that_do_not_work_end_in_one_sentence(tmp_path, capsys, options):
    file = tmp_path / 'file'
    file.touch()
    with pytest.raises(SystemExit) as error:
        quickstart.main(
            ['--work-dir', str(tmp_path), *options.format(file=file).split()]
        )
    assert error.value.code == 2
    assert re.fullmatch(r'.*: error: [^\n]+\n', capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == [file]


def test_a_short_quickstart_prints_a_table_and_draws_a_picture(tmp_path, capsys):
    options = ['--training', '4', '--validation', '6', '--max-iters', '2']
    quickstart.main(['--work-dir', str(tmp_path), *options])
    output = capsys.readouterr().out
    assert all(re.search(rf'{name}\W+\d+\.\d\d', output) for name in (*CLASSES, 'mean'))
    assert str(tmp_path / 'training/iter_2.pth') in output
    assert str(tmp_path / 'report/index.html') in output
    numbers = json.loads((tmp_path / 'report/report.json').read_text())
    assert numbers['about']['images'] == 6
    assert f'{numbers["mIoU"]:.2f}' in output
    with Image.open(tmp_path / 'scenes.png') as picture:
        colors = {color for _, color in picture.convert('RGB').getcolors(1 << 24)}
    palette = Config.fromfile(quickstart.CONFIG).palette
    assert {tuple(color) for color in palette} <= colors


def test_the_shell_scripts_help_names_every_option_without_a_set_up(tmp_path):
    result = subprocess.run(
        ['bash', ROOT / 'tools/quickstart.sh', '--help'],
        cwd=tmp_path,
        env={'PATH': '/usr/bin:/bin'},
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    )
    for action in quickstart.make_parser()._actions:
        assert action.option_strings[-1] in result.stdout
    assert result.stderr == ''
