"""How much memory the models take, at any image size and over many training steps.

``tools/analysis_tools/pressure.py`` is its command line. Every measurement runs in a process of its
own (:mod:`.alone`): one prediction (:mod:`.inference`), or training steps of a
cut-down model whose memory has to stay level (:mod:`.training`).
"""

from __future__ import annotations

from pressuring.alone import Ending, run_alone
from pressuring.inference import Job, predict
from pressuring.training import TrainingJob, growth_of, train

__all__ = [
    'Ending',
    'Job',
    'TrainingJob',
    'growth_of',
    'predict',
    'run_alone',
    'train',
]
