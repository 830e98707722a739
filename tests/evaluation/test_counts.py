"""Scores from counts, beside mmsegmentation's, and boundary IoU by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from mmseg.evaluation import IoUMetric

from mmseg_twins.evaluation.counts import (
    add_up,
    areas,
    count_image,
    count_pairs,
    ious,
    mean,
    near_contours,
)

CLASSES = 4


def maps(seed: int, size: tuple[int, int] = (23, 40)) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of labels, some of no class, some ignored, and a noisy prediction."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(CLASSES, size=(size[0] // 8 + 1, size[1] // 8 + 1))
    truth = np.kron(blocks, np.ones((8, 8), int))[: size[0], : size[1]]
    prediction = np.roll(truth, rng.integers(1, 4), axis=rng.integers(2))
    noise = rng.random(size) < 0.02
    prediction = np.where(noise, rng.integers(CLASSES, size=size), prediction)
    truth[2:6, 3:9] = CLASSES
    truth[-5:, -9:] = CLASSES + 1
    return truth.astype(np.uint8), prediction.astype(np.uint8)


def near_by_brute_force(mask: np.ndarray, distance: int) -> np.ndarray:
    """Pixels of a mask from which a pixel outside of it is at most so far away."""
    height, width = mask.shape
    near = np.zeros_like(mask)
    for row, column in np.argwhere(mask):
        for y in range(row - distance, row + distance + 1):
            for x in range(column - distance, column + distance + 1):
                inside = 0 <= y < height and 0 <= x < width
                near[row, column] |= not (inside and mask[y, x])
    return near


@pytest.mark.parametrize('band', [0.001, 0.09, 0.3, 0.6])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_pixels_near_contours_are_those_of_each_mask_by_itself(band, dtype):
    labels = maps(0, (13, 20))[0].astype(dtype)
    distance = max(1, round(band * math.sqrt(13**2 + 20**2)))
    expected = np.zeros(labels.shape, bool)
    for label in np.unique(labels):
        expected |= near_by_brute_force(labels == label, distance)
    assert np.array_equal(near_contours(labels, band), expected)
    assert expected.any()


@pytest.mark.parametrize('band', [0.02, 0.09])
def test_boundary_iou_is_the_papers(band):
    """Without ignored pixels: |Gd & G & Pd & P| / |(Gd & G) | (Pd & P)|."""
    truth, prediction = maps(1)
    truth %= CLASSES
    distance = max(1, round(band * math.hypot(*truth.shape)))
    expected = []
    for label in range(CLASSES):
        first, second = (
            near_by_brute_force(labels == label, distance)
            for labels in (truth, prediction)
        )
        expected.append((first & second).sum() / (first | second).sum())
    _, boundaries = count_image(truth, prediction, CLASSES, band)
    assert ious(boundaries, CLASSES) == pytest.approx(expected, rel=1e-12)
    assert 0 < min(expected) < max(expected) < 1


def test_what_is_predicted_at_ignored_pixels_makes_no_difference():
    truth, prediction = maps(2)
    other = np.where(truth == CLASSES + 1, (prediction + 1) % CLASSES, prediction)
    for first, second in zip(
        count_image(truth, prediction, CLASSES),
        count_image(truth, other, CLASSES),
        strict=True,
    ):
        assert np.array_equal(first, second)


def test_a_right_prediction_has_a_boundary_iou_of_one_beside_ignored_pixels():
    truth, _ = maps(3)
    truth[truth == CLASSES] = 0
    prediction = np.where(truth == CLASSES + 1, 1, truth)
    _, boundaries = count_image(truth, prediction, CLASSES)
    assert (ious(boundaries, CLASSES) == 1).all()


def test_scores_are_mmsegmentations():
    """Labels that are no class make what is predicted there wrong, as they do there."""
    pixels, results = [], []
    for seed in range(3):
        truth, prediction = maps(seed)
        pixels.append(count_image(truth, prediction, CLASSES)[0])
        results.append(
            IoUMetric.intersect_and_union(
                torch.from_numpy(prediction), torch.from_numpy(truth),
                CLASSES, CLASSES + 1,
            )
        )  # fmt: skip
    both, union, predicted, labeled = map(sum, zip(*results, strict=True))
    total = add_up(pixels, CLASSES)
    for mine, theirs in zip(
        areas(total, CLASSES), (both, labeled, predicted), strict=True
    ):
        assert mine.tolist() == theirs.tolist()
    assert ious(total, CLASSES) == pytest.approx((both / union).numpy(), rel=1e-6)


def test_a_class_that_does_not_occur_has_no_iou_and_leaves_the_mean_alone():
    labels = np.zeros(5, np.uint8)
    scores = ious(count_pairs(labels, labels, 2), 2)
    assert scores[0] == 1
    assert math.isnan(scores[1])
    assert mean(scores) == 1


def test_without_pixels_there_are_no_scores():
    nothing = np.zeros(0, np.uint8)
    scores = ious(count_pairs(nothing, nothing, 2), 2)
    assert np.isnan(scores).all()
    assert math.isnan(mean(scores))
