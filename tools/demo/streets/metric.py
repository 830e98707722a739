"""Intersection over union that also reports every class."""

from __future__ import annotations

from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS


@METRICS.register_module()
class ClassIoUMetric(IoUMetric):
    """mmsegmentation's ``IoUMetric``, with each class among the logged values.

    The class table that ``IoUMetric`` prints does not reach the log that is
    written for programs. Here each class is there as well, as ``IoU/<class>``
    in percent, so that curves can be drawn from it.
    """

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Sum up the areas of all pictures; see ``IoUMetric``."""
        metrics = super().compute_metrics(results)
        if self.format_only:
            return metrics
        intersect = sum(areas[0] for areas in results)
        union = sum(areas[1] for areas in results)
        for name, iou in zip(
            self.dataset_meta['classes'], intersect / union, strict=True
        ):
            metrics[f'IoU/{name}'] = round(100 * float(iou), 2)
        return metrics
