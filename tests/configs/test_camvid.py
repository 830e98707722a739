"""The CamVid configs, on generated images in CamVid's layout."""

from __future__ import annotations

from pathlib import Path

import camvid
import compare_runs
import mmseg.models  # noqa: F401, registers mmsegmentation's parts
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.registry import DATASETS, MODELS
from PIL import Image

from builders import ROOT, generator
from mmseg_twins.cli import check_dataset, train

CONFIGS = ROOT / 'configs/camvid'
NARROW = CONFIGS / 'twins_svt-narrow_fpn_fpnhead_1x4_192x256_10k_camvid.py'
BUILTIN = CONFIGS / 'builtin_svt-narrow_fpn_fpnhead_1x4_192x256_10k_camvid.py'
COLORS = np.array(list(camvid.CLASSES.values()), np.uint8)


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    """Eight images for training, two for validation and for testing."""
    folder = tmp_path_factory.mktemp('camvid')
    width, height = camvid.SIZE
    for part, count in (('train', 8), ('val', 2), ('test', 2)):
        for number in range(count):
            random = generator(f'{part}{number}')
            labels = np.full((height, width), camvid.IGNORED, np.uint8)
            for label in range(len(COLORS)):  # a bar for each class
                left = label * 43 + random.integers(8)
                labels[random.integers(height // 2) :, left : left + 36] = label
            colors = COLORS[np.minimum(labels, len(COLORS) - 1)]
            noise = random.normal(0, 12, colors.shape)
            image = np.clip(colors + noise, 0, 255).astype(np.uint8)
            for kind, array in (('images', image), ('annotations', labels)):
                path = folder / kind / part / f'{number:03d}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    return folder


def test_classes_and_colors_are_those_of_the_converter():
    cfg = Config.fromfile(NARROW)
    assert cfg.classes == list(camvid.CLASSES)
    assert cfg.palette == [list(color) for color in camvid.CLASSES.values()]


def test_weights_of_classes_follow_from_their_shares():
    # Shares of the training pixels, as check_dataset.py prints them.
    shares = [16.9, 23.3, 0.98, 31.7, 4.49, 9.72, 1.17, 1.13, 5.87, 0.64, 0.29]
    weights = np.array(shares) ** -0.5
    expected = weights / weights.mean()
    given = Config.fromfile(NARROW).model.decode_head.loss_decode.class_weight
    np.testing.assert_allclose(given, expected, atol=0.011)


def test_the_builtins_config_differs_in_the_model_alone():
    ours, builtin = Config.fromfile(NARROW), Config.fromfile(BUILTIN)
    differ = {key for key in ours if ours[key] != builtin[key]}
    assert differ == {'model'}
    with DefaultScope.overwrite_default_scope('mmseg'):
        shapes = [
            {name: value.shape for name, value in model.state_dict().items()}
            for model in (MODELS.build(cfg.model) for cfg in (ours, builtin))
        ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize('part', ['train', 'val', 'test'])
def test_each_part_is_read_from_its_own_folder(data: Path, part: str):
    loader = Config.fromfile(NARROW)[f'{part}_dataloader']
    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = DATASETS.build(dict(loader.dataset, data_root=str(data)))
    assert len(dataset) == {'train': 8, 'val': 2, 'test': 2}[part]
    sample = dataset[0]['data_samples']
    assert f'/{part}/' in sample.img_path
    labels = np.unique(sample.gt_sem_seg.data.numpy())
    assert {*labels} <= {*range(len(COLORS)), camvid.IGNORED}


@pytest.mark.slow
@pytest.mark.parametrize('config', [NARROW, BUILTIN], ids=['twins', 'builtin'])
def test_twenty_iterations_bring_the_loss_down(
    data: Path, tmp_path: Path, config: Path
):
    roots = [f'{part}_dataloader.dataset.data_root={data}' for part in ('train', 'val')]
    assert check_dataset.main([str(config), '--cfg-options', *roots]) == 0
    options = [
        'max_iters=20',
        'train_cfg.max_iters=20',
        'train_cfg.val_interval=10',
        'param_scheduler.0.end=4',
        'default_hooks.logger.interval=1',
        'default_hooks.checkpoint.interval=20',
        'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False',
    ]
    arguments = [str(config), '--work-dir', str(tmp_path), '--cfg-options']
    assert train.main([*arguments, *roots, *options]) == 0
    run = compare_runs.read_run(tmp_path)
    losses = list(run.loss.values())
    assert len(losses) == 20
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert list(run.miou) == [10, 20]
    assert (tmp_path / 'iter_20.pth').is_file()
