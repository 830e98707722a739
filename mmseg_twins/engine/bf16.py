"""bf16 training on any device, CPUs included.

mmengine 0.10.7's ``AmpOptimWrapper`` requires a GPU for its loss scaler. bf16 has the
exponent range of fp32, so that gradients do not underflow and need no scaling.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.runner import autocast
from torch import nn

from ..registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class BF16OptimWrapper(OptimWrapper):
    """mmengine's ``OptimWrapper`` with the forward pass under bf16 autocast.

    Takes the arguments of ``OptimWrapper``. Parameters, gradients and optimizer state
    stay in fp32.

    Example:
        >>> import torch
        >>> from mmseg_twins.engine import BF16OptimWrapper
        >>> model = torch.nn.Linear(2, 2)
        >>> wrapper = BF16OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
        >>> with wrapper.optim_context(model):
        ...     model(torch.zeros(1, 2)).dtype
        torch.bfloat16
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run the forward pass of a training step in this context."""
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield
