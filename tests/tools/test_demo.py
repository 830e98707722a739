"""The quickstart's scenes, its dataset and its pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.registry import DATASETS, MODELS
from PIL import Image
from scene_folder import write_scenes
from streets import quickstart
from streets.figures import (
    Comparison,
    colour_labels,
    draw_curves,
    draw_scenes,
    read_history,
)
from streets.scenes import make_scene
from streets.street.labels import CLASSES, Label

CONFIG = Path(__file__).parents[2] / 'configs' / 'demo' / 'twins_svt_fpn_streets.py'
SIZE = (160, 112)


@pytest.fixture(autouse=True)
def _scope():
    """Transforms and losses are looked up as in a run of mmsegmentation."""
    with DefaultScope.overwrite_default_scope('mmseg'):
        yield


@pytest.fixture(scope='module')
def scenes():
    """A dozen small scenes."""
    return [make_scene((0, 0, index), size=SIZE) for index in range(12)]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Scenes written as files."""
    root = tmp_path_factory.mktemp('streets') / 'data'
    write_scenes(root, training=3, validation=2, size=SIZE)
    return root


def test_equal_seeds_give_equal_scenes():
    first, again = (make_scene(5, size=SIZE) for _ in range(2))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.labels, again.labels)


def test_other_seeds_give_other_scenes(scenes):
    assert len({scene.image.tobytes() for scene in scenes}) == len(scenes)


def test_a_scene_is_an_image_and_a_label_for_each_pixel(scenes):
    for scene in scenes:
        assert scene.image.shape == (SIZE[1], SIZE[0], 3)
        assert scene.labels.shape == scene.image.shape[:2]
        assert scene.image.dtype == scene.labels.dtype == np.uint8


def test_every_class_occurs_and_none_is_all_there_is(scenes):
    pixels = np.concatenate([scene.labels.ravel() for scene in scenes])
    shares = np.bincount(pixels, minlength=len(Label)) / pixels.size
    assert len(shares) == len(Label)
    assert shares[1:].min() > 0.005
    assert shares.max() < 0.5
    assert shares[Label.OTHER] < 0.05


def test_scenes_come_in_several_moods(scenes):
    assert {scene.mood for scene in scenes} == {'day', 'dusk', 'overcast'}


def test_the_layout_is_ade20ks(folder):
    for split, count in (('training', 3), ('validation', 2)):
        images = sorted((folder / 'images' / split).iterdir())
        annotations = sorted((folder / 'annotations' / split).iterdir())
        assert len(images) == count
        assert [file.stem for file in images] == [file.stem for file in annotations]
        assert {file.suffix for file in images} == {'.jpg'}
        for file in annotations:
            with Image.open(file) as picture:
                assert (picture.format, picture.mode, picture.size) == (
                    'PNG',
                    'L',
                    SIZE,
                )


def test_training_and_validation_differ(folder):
    pictures = [file.read_bytes() for file in folder.glob('images/*/*.jpg')]
    assert len(set(pictures)) == 5


def test_existing_files_are_never_overwritten(tmp_path):
    (tmp_path / 'mine.txt').write_text('keep')
    with pytest.raises(FileExistsError, match='nothing is overwritten'):
        write_scenes(tmp_path, training=1, validation=1, size=SIZE)
    assert [file.name for file in tmp_path.iterdir()] == ['mine.txt']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(training=0, validation=1), 'training is 0'),
        (dict(training=1, validation=1, seed=-1), 'seed is -1'),
        (dict(training=1, validation=1, size=(32, 32)), 'at least 64'),
    ],
)
def test_numbers_that_make_no_scenes_are_named(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_scenes(tmp_path / 'data', **arguments)
    assert not list(tmp_path.iterdir())


def test_the_dataset_reads_classes_from_zero_and_ignores_other(folder):
    cfg = Config.fromfile(CONFIG).val_dataloader.dataset
    cfg.data_root = str(folder)
    dataset = DATASETS.build(cfg)
    sample = dataset[0]['data_samples']
    first = sorted(folder.glob('annotations/validation/*.png'))[0]
    labels = np.array(Image.open(first))
    assert dataset.metainfo['classes'] == CLASSES
    truth = sample.gt_sem_seg.data[0].numpy()
    assert np.array_equal(truth, np.where(labels == 0, 255, labels - 1))


def test_a_missing_folder_says_how_to_make_scenes(tmp_path):
    cfg = Config.fromfile(CONFIG).val_dataloader.dataset
    cfg.data_root = str(tmp_path)
    with pytest.raises(FileNotFoundError, match='street_scenes.py'):
        DATASETS.build(cfg)


def test_the_demos_model_has_a_logit_for_each_class():
    cfg = Config.fromfile(CONFIG)
    model = MODELS.build(cfg.model).eval()
    with torch.no_grad():
        logits = model(torch.zeros(1, 3, 64, 96), mode='tensor')
    assert logits.shape == (1, len(CLASSES), 16, 24)


def test_a_picture_of_predictions_shows_all_of_them(scenes, tmp_path):
    comparisons = [
        Comparison('a scene', scene.image, scene.labels, scene.labels)
        for scene in scenes[:6]
    ]
    draw_scenes(tmp_path / 'scenes.png', comparisons, title='Scenes')
    with Image.open(tmp_path / 'scenes.png') as picture:
        width, height = picture.size
        colours = {colour for _, colour in picture.convert('RGB').getcolors(1 << 24)}
    assert width > 1500
    assert height > 700
    shown = colour_labels(np.arange(1, len(Label)))
    assert {tuple(colour) for colour in shown.tolist()} <= colours


def test_a_comparison_counts_scored_pixels_only():
    truth = np.array([[0, 0, 1, 2]])
    image = np.zeros((1, 4, 3), np.uint8)
    assert Comparison('', image, truth, np.array([[1, 1, 1, 1]])).correct == 0.5


def test_curves_are_drawn_from_mmengines_log(tmp_path):
    log = tmp_path / 'scalars.json'
    lines = [dict(loss=1.0 / step, step=step) for step in (1, 2, 3)]
    lines.append({'mIoU': 40.0, 'IoU/sky': 60.0, 'IoU/car': 20.0, 'step': 3})
    log.write_text('\n'.join(json.dumps(line) for line in lines))
    history = read_history(log)
    draw_curves(tmp_path / 'curves.png', history, title='Training')
    assert history.losses == [1.0, 0.5, 1 / 3]
    assert (history.checks, history.miou) == ([3], [40.0])
    assert history.class_iou == {'sky': [60.0], 'car': [20.0]}
    with Image.open(tmp_path / 'curves.png') as picture:
        assert picture.convert('L').getextrema()[0] < 100


def test_an_earlier_run_is_moved_and_kept(tmp_path):
    (tmp_path / 'mine.txt').write_text('keep')
    for number in (1, 2):
        (tmp_path / 'scenes.png').write_text(f'picture {number}')
        assert quickstart.set_aside(tmp_path) == tmp_path / f'earlier_{number}'
    kept = sorted(file.read_text() for file in tmp_path.glob('earlier_*/scenes.png'))
    assert kept == ['picture 1', 'picture 2']
    assert (tmp_path / 'mine.txt').read_text() == 'keep'
    assert quickstart.set_aside(tmp_path) is None


def test_scenes_of_all_moods_are_shown():
    names = ['1_day', '2_day', '3_day', '4_dusk', '5_day', '6_overcast', '7_dusk']
    picked = quickstart.pick_scenes([Path(f'{name}.jpg') for name in names], 5)
    assert [file.stem for file in picked] == [
        '1_day',
        '2_day',
        '4_dusk',
        '7_dusk',
        '6_overcast',
    ]


def test_a_shorter_run_shortens_its_schedule():
    cfg = quickstart.with_iterations(Config.fromfile(CONFIG), 100)
    assert cfg.train_cfg.max_iters == cfg.param_scheduler[-1].end == 100
    assert cfg.train_cfg.val_interval == 25
    assert cfg.default_hooks.checkpoint.interval == 100


@pytest.mark.parametrize(('validation', 'max_iters'), [(5, None), (6, 1)])
def test_numbers_that_show_nothing_are_refused(validation, max_iters):
    with pytest.raises(ValueError, match='or more'):
        quickstart.check_numbers(validation, max_iters)
