"""Metrics: the loss on validation images, and reports."""

from __future__ import annotations

from .loss_metric import LossMetric
from .report_metric import Report, ReportCheckpoint

__all__ = ['LossMetric', 'Report', 'ReportCheckpoint']
