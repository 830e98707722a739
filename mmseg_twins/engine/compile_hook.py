"""Compiles the parts of a segmentor that do the work of a training step.

mmengine's own ``compile=True`` hands the whole ``train_step`` to ``torch.compile``,
the optimizer's update included. With PyTorch 2.13 that fails where a config has
``paramwise_cfg``: mmengine then gives the optimizer parameter groups of its own dict
class, which the tracer does not take.
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

    Evaluation stays as it is: its images have many sizes, and each new size would be
    compiled again. Weights and their names stay as they are, too.

    Args:
        parts: attributes of the segmentor; those that it does not have are passed
            over.
        options: arguments of ``torch.compile``, such as ``mode='max-autotune'``. Each
            size of image is compiled by itself, unless ``dynamic`` says otherwise:
            PyTorch 2.13's inductor fails on these models with open sizes.

    Raises:
        SettingError: ``parts`` names none of a segmentor's.
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
        """Replace the parts' ``forward`` while the model trains."""
        for part in self._parts_of(runner):
            compiled = torch.compile(part.forward, **self.options)
            part.forward = forward_by_mode(part, part.forward, compiled)

    def after_train(self, runner: Runner) -> None:
        """Put the parts' own ``forward`` back."""
        for part in self._parts_of(runner):
            del part.forward

    def _parts_of(self, runner: Runner) -> list[nn.Module]:
        model = runner.model
        model = model.module if is_model_wrapper(model) else model
        parts = [getattr(model, name, None) for name in self.parts]
        return [part for part in parts if isinstance(part, nn.Module)]


def forward_by_mode(part: nn.Module, eager: Callable, compiled: Callable) -> Callable:
    """A ``forward`` that is compiled in training mode and eager in evaluation."""

    def forward(*args, **kwargs):
        return (compiled if part.training else eager)(*args, **kwargs)

    return forward
