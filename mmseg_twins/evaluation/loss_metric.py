"""The loss on validation images."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.evaluator import BaseMetric

from ..errors import SettingError
from ..models.segmentors.results import LOSS, want_loss
from ..registry import METRICS


@METRICS.register_module()
class LossMetric(BaseMetric):
    """The decode head's cross entropy on validation images, as ``loss``.

    It is the mean over the pixels of all images, at the annotations' size and with the
    head's ``loss_weight`` and ``class_weight``; ignored pixels do not count. The
    training loss differs: it is the mean over the crops of a batch, includes the
    auxiliary head's, and counts ignored pixels as zeros unless ``loss_decode`` has
    ``avg_non_ignore=True``.

    The segmentor, ``mmseg_twins.EncoderDecoder``, computes it from the same tiles of
    logits as the labels, so that nothing is predicted twice and no logits are held at
    full size.

    Raises:
        SettingError: the segmentor has not computed the loss.

    Example:
        >>> val_evaluator = [
        ...     dict(type='IoUMetric', iou_metrics=['mIoU']),
        ...     dict(type='mmseg_twins.LossMetric'),
        ... ]
    """

    def __init__(self, collect_device: str = 'cpu', prefix: str | None = None) -> None:
        super().__init__(collect_device, prefix)
        want_loss()

    def process(self, data_batch: dict | None, data_samples: Sequence[dict]) -> None:
        """Keep the sums of a batch's images."""
        for sample in data_samples:
            if LOSS not in sample:
                raise SettingError(
                    'LossMetric: the segmentor has computed no loss; it needs '
                    "model.type='mmseg_twins.EncoderDecoder', a pipeline with "
                    'LoadAnnotations, and no test-time augmentation'
                )
            self.results.append(tuple(sample[LOSS].tolist()))

    def compute_metrics(self, results: list[tuple[float, float]]) -> dict[str, float]:
        """Return the mean loss over the pixels of all images; NaN without any pixel."""
        total, weight = map(sum, zip(*results, strict=True))
        return {'loss': total / weight if weight else float('nan')}
