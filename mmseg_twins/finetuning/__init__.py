"""Training that begins at a segmentor trained for other classes.

Importing it registers the hooks that ``configs/demo/finetune_custom.py`` uses:
:class:`.StartFrom` takes over the weights, :class:`.CheckLabels` stops at labels that
the model has no class for. :mod:`.curves` compares trainings in a picture.
"""

from __future__ import annotations

from .check_labels import CheckLabels
from .errors import FinetuningError
from .start_from import StartFrom

__all__ = ['CheckLabels', 'FinetuningError', 'StartFrom']
