"""A training that is killed goes on as if nothing had happened.

Importing it registers two hooks that the recipes add to mmengine's default ones:

* :class:`.CheckpointHook` writes a checkpoint completely or not at all, removes old
  ones only after that, passes over a damaged one when a run is resumed, and validates
  what a kill kept from being validated;
* :class:`.ExactResume` derives every random number of a training from the seed, the
  iteration and the sample, so that a resumed training has the numbers, and the order of
  data, of one that was never stopped.
"""

from __future__ import annotations

from .checkpoint_hook import CheckpointHook
from .exact_resume import ExactResume
from .latest import NoWholeCheckpoint, find_whole_checkpoint

__all__ = [
    'CheckpointHook',
    'ExactResume',
    'NoWholeCheckpoint',
    'find_whole_checkpoint',
]
