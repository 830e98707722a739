"""How training treats parameters and arithmetic.

Layer-wise learning rates, bf16 on any device, compilation.
"""

from __future__ import annotations

from .bf16 import BF16OptimWrapper
from .compile_hook import CompileHook
from .layer_decay import LayerDecayOptimWrapperConstructor

__all__ = ['BF16OptimWrapper', 'CompileHook', 'LayerDecayOptimWrapperConstructor']
