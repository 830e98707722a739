"""Starts a training at the weights of a segmentor that has other classes.

mmengine's ``load_from`` loads what fits and notes the rest in the log, so that a
checkpoint of another variant trains on from random weights. Here the layers that may
differ are named, and any other difference is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor

from ..checkpoints.downloading import fetch, is_url
from ..checkpoints.reading import read_source
from ..errors import CheckpointError, SettingError
from ..registry import HOOKS

CLASSIFICATION_LAYERS = ('decode_head.conv_seg', 'auxiliary_head.conv_seg')
SHOWN = 3  # tensors that a message names


@HOOKS.register_module()
class StartFrom(Hook):
    """Loads a segmentor's weights before the first iteration, but for some layers.

    A training that is resumed goes on from its own checkpoint instead. Hooks that
    follow the loading of checkpoints, such as ``EMAHook``, are told.

    Args:
        checkpoint: path or http(s) URL of a segmentor of the same layout: a file of
            PyTorch's, with or without ``state_dict`` around the weights, or a
            ``.safetensors`` file. It is read without letting anything in it run.
            None starts from scratch.
        leave_out: names of modules or tensors that keep the weights they have: by
            default the layers with one output for each class. A name that neither
            model nor checkpoint has is passed over.

    Raises:
        SettingError: ``leave_out`` is no sequence of names; or, at the start of a
            training, there is no such checkpoint, it cannot be read, or it differs
            from the model outside of ``leave_out``.

    Example:
        >>> custom_hooks = [
        ...     dict(type='mmseg_twins.StartFrom', checkpoint='segmentor.pth')
        ... ]
    """

    # Before hooks that look at the weights.
    priority = 'VERY_HIGH'

    def __init__(
        self,
        *,
        checkpoint: str | None,
        leave_out: Sequence[str] = CLASSIFICATION_LAYERS,
    ) -> None:
        if isinstance(leave_out, str) or not all(
            isinstance(name, str) for name in leave_out
        ):
            raise SettingError(
                f'StartFrom: leave_out={leave_out!r} is no list of names, such as '
                f'{list(CLASSIFICATION_LAYERS)}'
            )
        self.checkpoint = checkpoint
        self.leave_out = tuple(leave_out)

    def before_train(self, runner: Runner) -> None:
        """Loads the weights, unless the training goes on from an earlier part."""
        if self.checkpoint is None:
            runner.logger.info('StartFrom: no checkpoint, the weights are new')
            return
        if runner.iter > 0:
            runner.logger.info(
                f'StartFrom: the training goes on from iteration {runner.iter}; '
                f'{self.checkpoint} is not used'
            )
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        wanted = model.state_dict()
        found = self._read()
        differing = differences(wanted, found, leave_out=self.leave_out)
        if differing:
            raise SettingError(
                f'StartFrom: {self.checkpoint} does not fit the model outside of '
                f'leave_out={list(self.leave_out)}: {differing}'
            )
        loaded = {
            name: value
            for name, value in found.items()
            if not is_part_of(name, self.leave_out)
        }
        model.load_state_dict({**wanted, **loaded})
        new = [name for name in wanted if name not in loaded]
        runner.logger.info(
            f'StartFrom: {len(loaded)} tensors are from {self.checkpoint}; left out, '
            f'and new: {", ".join(new) or "none"}'
        )
        runner.call_hook(
            'after_load_checkpoint', checkpoint=dict(state_dict=model.state_dict())
        )

    def _read(self) -> dict[str, Tensor]:
        source = str(self.checkpoint)
        try:
            path = fetch(source, progress=False) if is_url(source) else Path(source)
            state = read_source(path).state
        except (CheckpointError, OSError) as error:
            raise SettingError(f'StartFrom: {error}') from error
        return {
            name: value for name, value in state.items() if isinstance(value, Tensor)
        }


def is_part_of(name: str, modules: Sequence[str]) -> bool:
    """Whether a tensor is one of, or belongs to one of, the modules that are named."""
    return any(name == module or name.startswith(f'{module}.') for module in modules)


def differences(
    wanted: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    *,
    leave_out: Sequence[str] = (),
) -> str:
    """Says in what a checkpoint differs from a model.

    Args:
        wanted: the model's state dict.
        found: the checkpoint's.
        leave_out: modules that may differ.

    Returns:
        A part of a sentence that names tensors and says what helps; empty where
        nothing differs.
    """
    wanted, found = (
        {name: v for name, v in state.items() if not is_part_of(name, leave_out)}
        for state in (wanted, found)
    )
    if not wanted.keys() & found.keys():
        return (
            f'none of its tensors (the first: {next(iter(found), "none")!r}) has the '
            'name of one of the model; tools/model_converters/twins2mmseg.py converts '
            'other layouts, and a backbone alone is for model.backbone.init_cfg'
        )
    reshaped = [
        f'{name} is {shape_of(found[name])} there and {shape_of(wanted[name])} here'
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    parts = [
        f'{kind}: {len(names)} ({some(names)})'
        for names, kind in (
            (reshaped, 'tensors of another shape'),
            ([name for name in wanted if name not in found], 'missing tensors'),
            ([name for name in found if name not in wanted], 'unknown tensors'),
        )
        if names
    ]
    if not parts:
        return ''
    return (
        f'{", ".join(parts)}; give a checkpoint of the same variant and heads, or name '
        'in leave_out what is to begin anew'
    )


def shape_of(tensor: Tensor) -> str:
    """A shape such as ``32x3x4x4``."""
    return 'x'.join(map(str, tensor.shape)) or 'a number'


def some(names: Sequence[str]) -> str:
    """The first of some names, for a message."""
    return ', '.join(names[:SHOWN]) + (', ...' if len(names) > SHOWN else '')
