"""Compiles the parts of a segmentor that a training step spends its time in.

mmengine's own ``compile=True`` compiles the whole ``train_step``, including the
optimizer's update. With PyTorch 2.13 that fails for configs with ``paramwise_cfg``:
mmengine's parameter groups are of its own dict class, which the tracer does not
support.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from ..errors import SettingError
from ..registry import HOOKS

PARTS = ('backbone', 'neck', 'decode_head', 'auxiliary_head')


@HOOKS.register_module()
class CompileHook(Hook):
    """Compiles forward and backward passes for training.

    Evaluation is not compiled, because its images have many sizes, and each new size
    would be compiled again. Weights and their names do not change.

    Args:
        parts: attributes of the segmentor; missing ones are ignored.
        options: arguments of ``torch.compile``, such as ``mode='max-autotune'``.
            ``dynamic`` is False by default, so that each image size is compiled
            separately: PyTorch 2.13's inductor fails on these models with dynamic
            sizes.

    Raises:
        SettingError: ``parts`` is empty or has an unknown name.
    """

    def __init__(self, parts: Sequence[str] = PARTS, **options) -> None:
        unknown = [part for part in parts if part not in PARTS]
        if unknown or not parts:
            raise SettingError(
                f'CompileHook: parts={list(parts)!r}; give some of {", ".join(PARTS)}'
            )
        self.parts = tuple(parts)
        self.options = {'dynamic': False, **options}

    def before_train(self, runner: Runner) -> None:
        """Compile the parts' ``forward``."""
        for part in self._parts_of(runner):
            compiled = torch.compile(part.forward, **self.options)
            part.forward = forward_by_mode(part, part.forward, compiled)

    def after_train(self, runner: Runner) -> None:
        """Restore the parts' ``forward``."""
        for part in self._parts_of(runner):
            del part.forward

    def _parts_of(self, runner: Runner) -> list[nn.Module]:
        model = runner.model
        model = model.module if is_model_wrapper(model) else model
        parts = [getattr(model, name, None) for name in self.parts]
        return [part for part in parts if isinstance(part, nn.Module)]


def forward_by_mode(part: nn.Module, eager: Callable, compiled: Callable) -> Callable:
    """Return a ``forward`` that is compiled in training mode and eager otherwise."""

    def forward(*args, **kwargs):
        return (compiled if part.training else eager)(*args, **kwargs)

    return forward
