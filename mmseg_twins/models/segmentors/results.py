"""Results of an image, computed strip by strip: labels, their probability, a loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from mmengine.logging import MessageHub
from mmengine.structures import PixelData
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.structures import SegDataSample
from torch import Tensor
from torch.nn import functional as F

from ... import ops
from ...errors import SettingError
from ..decode_heads.loss import plain_cross_entropy

# Key of mmengine's message hub, which the parts of a run share.
WANTED = 'mmseg_twins.LossMetric'
LOSS = 'loss_of_pixels'


def want_loss() -> None:
    """Make the segmentors of the current run compute the loss of predictions."""
    MessageHub.get_current_instance().update_info(WANTED, True, resumed=False)


def loss_is_wanted() -> bool:
    """Return whether :func:`want_loss` was called in the current run."""
    return bool(MessageHub.get_current_instance().get_info(WANTED, False))


class PixelLoss:
    """The sum of a decode head's cross entropy over an image, tile by tile.

    Args:
        head: the decode head.
        target: ground truth at the image's size, (1, H, W).

    Attributes:
        total: the sum over pixels that are not ignored, float64.
        weight: the sum of these pixels' class weights, float64.

    Raises:
        SettingError: the head's loss is not softmax cross entropy alone.
    """

    def __init__(self, head: BaseDecodeHead, target: Tensor) -> None:
        criterion = plain_cross_entropy(head)
        if criterion is None:
            raise SettingError(
                'LossMetric: decode_head.loss_decode or its sampler is not supported; '
                'it computes the softmax cross entropy of a single CrossEntropyLoss'
            )
        self._target = target[0].long()
        self._class_weight = criterion.class_weight
        self._loss_weight = criterion.loss_weight
        self._ignored = head.ignore_index
        self.total = target.new_zeros((), dtype=torch.float64)
        self.weight = target.new_zeros((), dtype=torch.float64)

    def add(self, rows: slice, columns: slice, logits: Tensor) -> None:
        """Add a tile, whose logits are (rows, columns, classes)."""
        target = self._target[rows, columns].flatten()
        if target.numel() != logits.shape[:2].numel():
            raise SettingError(
                f'LossMetric: the ground truth has {self._target.shape[1]}x'
                f'{self._target.shape[0]} px and its image another size; leave '
                'annotations of the validation pipeline at their original size'
            )
        weight = self._class_weight
        if weight is not None:
            weight = ops.constant(weight, logits.dtype, like=logits)
        self.total += self._loss_weight * F.cross_entropy(
            logits.flatten(0, 1),
            target,
            weight,
            ignore_index=self._ignored,
            reduction='sum',
        )
        valid = target != self._ignored
        if weight is None:
            self.weight += valid.sum()
        else:
            self.weight += (weight[target.where(valid, 0)] * valid).sum()


class Results:
    """What is predicted of an image, filled in as soon as its logits are there.

    Args:
        views: of the image.
        threshold: the least probability of the foreground, if there is one class.
        confidence: whether the labels' probabilities are wanted.
        loss: adds up the loss, if it is wanted; of a single view.

    Attributes:
        labels: (H, W), int64.
        confidence: (H, W), the probability of each label, or None.
    """

    def __init__(
        self,
        views: Sequence[ops.View],
        threshold: float | None,
        *,
        confidence: bool = False,
        loss: PixelLoss | None = None,
    ) -> None:
        logits = views[0].logits
        size = (views[0].rows.size, views[0].columns.size)
        self.labels = logits.new_empty(size, dtype=torch.int64)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        self.confidence = logits.new_empty(size, dtype=dtype) if confidence else None
        self._strips = ops.Strips(views, ops.tiling(logits))
        self._threshold = threshold
        self._loss = loss

    @torch.no_grad()
    def update(self, rows: float = math.inf) -> None:
        """Make what needs none but the first rows of all logits."""
        for strip in self._strips.ready(rows):
            labels, confidence = ops.strip_labels(
                strip,
                self._threshold,
                confidence=self.confidence is not None,
                show=self._loss and self._adds(strip.rows),
            )
            self.labels[strip.rows] = labels
            if self.confidence is not None and confidence is not None:
                self.confidence[strip.rows] = confidence

    def set_more(self, sample: SegDataSample) -> None:
        """Set what a sample has besides labels: ``confidence`` and the loss."""
        self.update()
        if self.confidence is not None:
            sample.set_data({'confidence': PixelData(data=self.confidence[None])})
        if self._loss is not None:
            sample.set_field(torch.stack([self._loss.total, self._loss.weight]), LOSS)

    def _adds(self, rows: slice):
        return lambda columns, tiles: self._loss.add(rows, columns, tiles[0])


def full_view(logits: Tensor) -> ops.View:
    """Return logits at the image's size, (classes, H, W), as a view of it."""
    height, width = logits.shape[1:]
    rows, columns = (
        ops.Axis((0,), side, side, (0, side), False, side, False)
        for side in (height, width)
    )
    return ops.View(logits.permute(1, 2, 0), rows, columns)
