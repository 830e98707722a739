"""Counts of pixels by class, and the scores that follow from them.

Boundary IoU (Cheng et al. 2021, https://arxiv.org/abs/2103.16562) of a mask G and its
prediction P is the IoU of two parts of them: the pixels of G within a distance d of
G's contour, and the pixels of P within d of P's. As in the authors' code
(bowenc0221/boundary-iou-api), d is 2 % of the image's diagonal, rounded and at least
one pixel, distances are the larger of the horizontal and the vertical one, and a mask
that is cut off by the edge of the image has a contour there.

In semantic segmentation, the masks are the classes of a label map. A pixel is near the
contour of its class if another label, or the outside of the image, is within d, so that
a single pass over the map finds these pixels for all classes. Intersections and unions
are added up over images, as for mIoU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

BAND = 0.02  # the default width, as a share of the image's diagonal
# The pairs of labels that occur, as ``truth * (classes + 1) + prediction``, and their
# counts: a few kilobytes per image, instead of 180 for all pairs of 150 classes.
Pairs = tuple[np.ndarray, np.ndarray]


def count_image(
    truth: np.ndarray, prediction: np.ndarray, count: int, band: float = BAND
) -> tuple[Pairs, Pairs]:
    """Count the pairs of labels of an image, and those of pixels near contours.

    Ignored pixels belong to no class, in the truth and in the prediction.

    Args:
        truth: (H, W), uint8 or uint16: classes, ``count`` for labels that are not
            classes, and ``count + 1`` for ignored pixels.
        prediction: (H, W), likewise.
        count: number of classes.
        band: width of the boundaries, as a share of the image's diagonal.
    """
    counted = truth <= count
    maps = truth, np.where(counted, prediction, truth)
    near = [np.where(near_contours(labels, band), labels, count) for labels in maps]
    pixels, boundaries = (
        count_pairs(first[counted], second[counted], count)
        for first, second in (maps, near)
    )
    return pixels, boundaries


def near_contours(labels: np.ndarray, band: float = BAND) -> np.ndarray:
    """Find the pixels near the contour of their class.

    Args:
        labels: (H, W), uint8 or uint16.
        band: the width, as a share of the image's diagonal.

    Returns:
        (H, W), bool.
    """
    width = max(1, round(band * math.hypot(*labels.shape)))
    window = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    near = cv2.erode(labels, window) != cv2.dilate(labels, window)
    near[:width] = near[-width:] = True
    near[:, :width] = near[:, -width:] = True
    return near


def count_pairs(truth: np.ndarray, prediction: np.ndarray, count: int) -> Pairs:
    """Count the pairs of labels, which are from 0 to ``count``."""
    return found(np.bincount(truth.astype(np.int64) * (count + 1) + prediction))


def add_up(all_pairs: Sequence[Pairs], count: int) -> Pairs:
    """Add up the counts of images."""
    total = np.zeros((count + 1) ** 2, np.int64)
    for pairs, counts in all_pairs:
        total[pairs] += counts
    return found(total)


def found(counts: np.ndarray) -> Pairs:
    """Return the indices of the counts above zero, and these counts."""
    places = np.flatnonzero(counts)
    return places, counts[places]


def areas(pairs: Pairs, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pixels of each class in both maps, the truth and the prediction."""
    truth, prediction = np.divmod(pairs[0], count + 1)
    both = truth == prediction
    return (
        np.bincount(truth[both], pairs[1][both], count + 1)[:count],
        np.bincount(truth, pairs[1], count + 1)[:count],
        np.bincount(prediction, pairs[1], count + 1)[:count],
    )


def ious(pairs: Pairs, count: int) -> np.ndarray:
    """Return the IoU of each class, from 0 to 1; NaN for classes without pixels."""
    both, truth, prediction = areas(pairs, count)
    return ratio(both, truth + prediction - both)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide; NaN where the divisor is zero."""
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def mean(values: np.ndarray) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else math.nan
