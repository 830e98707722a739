"""Where classes and palette come from."""

from __future__ import annotations

import numpy as np
import pytest
from mmengine.config import Config

from mmseg_twins.checkpoints.dataset_meta import distinct_colors, find_dataset_meta

CLASSES = ('sky', 'sea', 'road')
PALETTE = [(10, 20, 200), (250, 0, 120), (90, 160, 30)]


def config(**dataset) -> Config:
    return Config(dict(test_dataloader=dict(dataset=dataset)))


@pytest.mark.parametrize(
    'meta',
    [
        dict(dataset_meta=dict(classes=CLASSES, palette=PALETTE)),
        dict(CLASSES=list(CLASSES), PALETTE=[list(color) for color in PALETTE]),
    ],
    ids=['mmengine', 'mmcv'],
)
def test_the_checkpoint_comes_first(meta):
    cfg = config(type='CityscapesDataset', metainfo=dict(classes=('x', 'y', 'z')))
    expected = dict(classes=CLASSES, palette=PALETTE)
    assert find_dataset_meta(cfg, meta, 3) == expected


def test_the_config_comes_next():
    given = config(type='BaseSegDataset', metainfo=dict(classes=('x', 'y', 'z')))
    assert find_dataset_meta(given, {}, 3)['classes'] == ('x', 'y', 'z')
    wrapped = config(
        type='RepeatDataset', dataset=dict(type='CityscapesDataset'), times=2
    )
    assert find_dataset_meta(wrapped, {}, 3)['classes'][:2] == ('road', 'sidewalk')


@pytest.mark.parametrize(('count', 'least'), [(8, 100), (20, 70), (150, 25)])
def test_colors_of_a_missing_palette_are_far_apart(count: int, least: float):
    colors = np.array(distinct_colors(count), float)
    distances = np.linalg.norm(colors[:, None] - colors, axis=2)
    assert distances[~np.eye(count, dtype=bool)].min() > least


def test_a_missing_palette_is_the_same_each_time():
    meta = dict(dataset_meta=dict(classes=CLASSES))
    palette = find_dataset_meta(config(), meta, 3)['palette']
    assert len(set(palette)) == 3
    assert palette == find_dataset_meta(config(), meta, 3)['palette']


def test_classes_that_nobody_names_get_one_sentence():
    with pytest.raises(ValueError, match='neither the checkpoint nor the config'):
        find_dataset_meta(config(type='BaseSegDataset'), {}, 3)
    meta = dict(dataset_meta=dict(classes=CLASSES[:2]))
    with pytest.raises(ValueError, match='checkpoint names 2 classes, .* predicts 3'):
        find_dataset_meta(config(), meta, 3)
