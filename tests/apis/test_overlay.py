"""Overlays of classes on images, and their legends."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from mmseg.visualization import SegLocalVisualizer

from mmseg_twins.apis import draw_overlay

CLASSES = ('sky', 'a$b$', 'road')
PALETTE = ((10, 20, 200), (250, 0, 120), (90, 160, 30))


def scene(height: int, width: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """A random image, and labels in vertical stripes."""
    image = np.random.default_rng(0).integers(256, size=(height, width, 3))
    labels = np.arange(width) * count // width
    return image.astype(np.uint8), np.tile(labels, (height, 1))


def test_colors_equal_mmsegmentations_visualizer():
    image, labels = scene(50, 60, 3)
    names = dict(classes=CLASSES, palette=PALETTE)
    drawn = draw_overlay(image, labels, **names, opacity=0.3, legend=False)
    # What it hands to matplotlib, older versions of which resample it.
    theirs = SegLocalVisualizer(alpha=0.3)._draw_sem_seg(
        image,
        PixelData(data=torch.from_numpy(labels)[None]),
        CLASSES,
        PALETTE,
        with_labels=False,
    )
    assert np.abs(drawn.astype(int) - theirs).max() <= 1


def test_opacity_goes_from_the_image_to_the_classes():
    image, labels = scene(50, 60, 3)
    names = dict(classes=CLASSES, palette=PALETTE)
    for opacity, expected in ((0, image), (1, np.array(PALETTE, np.uint8)[labels])):
        drawn = draw_overlay(image, labels, **names, opacity=opacity)
        assert np.array_equal(drawn[:50, :60], expected)


def test_the_legend_has_the_colors_of_the_classes_in_the_image():
    image, labels = scene(300, 60, 3)
    labels[labels == 1] = 0
    drawn = draw_overlay(image, labels, classes=CLASSES, palette=PALETTE)
    legend = {tuple(pixel) for pixel in drawn[:, 60:].reshape(-1, 3).tolist()}
    assert PALETTE[0] in legend
    assert PALETTE[2] in legend
    assert PALETTE[1] not in legend


@pytest.mark.parametrize(
    ('height', 'width', 'count'),
    [(1, 1, 1), (48, 64, 8), (300, 200, 60)],
)
def test_every_entry_of_the_legend_is_inside_the_picture(height, width, count):
    image, labels = scene(height, max(width, count), count)
    palette = [(255, index, 0) for index in range(count)]
    classes = [f'a class of number {index}' for index in range(count)]
    drawn = draw_overlay(image, labels, classes=classes, palette=palette)
    legend = drawn[:, image.shape[1] :]
    assert {tuple(color) for color in legend.reshape(-1, 3).tolist()} >= set(palette)
    border = np.concatenate([legend[-1], legend[:, -1]])
    assert (border == 255).all()


def test_labels_without_a_class_are_rejected():
    image, labels = scene(50, 60, 4)
    with pytest.raises(ValueError, match='labels go up to 3, but there are 3 classes'):
        draw_overlay(image, labels, classes=CLASSES, palette=PALETTE)
