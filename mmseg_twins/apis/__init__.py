"""Loading, prediction and export, for scripts and notebooks."""

from __future__ import annotations

from .load_model import load_model
from .loading import build_segmentor, load_weights
from .overlay import draw_overlay
from .prediction import Prediction, Predictor
from .rows import ArrayRows, EndOfRows, PredictionError
from .sharing import SharingError

__all__ = [
    'ArrayRows',
    'EndOfRows',
    'Prediction',
    'PredictionError',
    'Predictor',
    'SharingError',
    'build_segmentor',
    'draw_overlay',
    'load_model',
    'load_weights',
]
