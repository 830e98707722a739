"""Streets to try the package on: made from a seed, in ADE20K's folder layout.

Importing it registers the dataset and the metric that ``configs/demo`` use;
:mod:`.scenes` makes the scenes, :mod:`.folder` writes them, :mod:`.figures` draws
what came of a training.
"""

from __future__ import annotations

from streets.dataset import StreetsDataset
from streets.metric import ClassIoUMetric

__all__ = ['ClassIoUMetric', 'StreetsDataset']
