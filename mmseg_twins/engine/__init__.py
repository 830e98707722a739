"""Hooks, optimizer wrappers and their constructors for training."""

from __future__ import annotations

from .bf16 import BF16OptimWrapper
from .check_labels import CheckLabels
from .check_numbers import CheckNumbers
from .checkpoint_hook import CheckpointHook
from .compile_hook import CompileHook
from .early_stopping import EarlyStopping
from .exact_resume import ExactResume
from .full_disk import LocalVisBackend
from .layer_decay import LayerDecayOptimWrapperConstructor
from .preemption import Preemption
from .start_from import StartFrom
from .strict_loading import StrictLoading
from .unreadable_files import UnreadableFiles

__all__ = [
    'BF16OptimWrapper',
    'CheckLabels',
    'CheckNumbers',
    'CheckpointHook',
    'CompileHook',
    'EarlyStopping',
    'ExactResume',
    'LayerDecayOptimWrapperConstructor',
    'LocalVisBackend',
    'Preemption',
    'StartFrom',
    'StrictLoading',
    'UnreadableFiles',
]
