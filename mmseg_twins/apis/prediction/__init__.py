"""Looks at what a segmentor makes of images: behind ``tools/predict.py``.

:class:`Predictor` is a model with a checkpoint's weights, :func:`draw_overlay` shows a
label map on its image with a legend, and :mod:`.files` decides what is read and
written.
"""

from __future__ import annotations

from .overlay import draw_overlay
from .predictor import Prediction, PredictionError, Predictor

__all__ = ['Prediction', 'PredictionError', 'Predictor', 'draw_overlay']
