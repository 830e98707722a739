"""Metrics of predictions."""

from __future__ import annotations

from .loss_metric import LossMetric

__all__ = ['LossMetric']
