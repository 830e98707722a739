"""What a script or a notebook calls: loading, prediction, export."""

from __future__ import annotations

from .loading import build_segmentor, load_weights
from .overlay import draw_overlay
from .prediction import Prediction, PredictionError, Predictor

__all__ = [
    'Prediction',
    'PredictionError',
    'Predictor',
    'build_segmentor',
    'draw_overlay',
    'load_weights',
]
