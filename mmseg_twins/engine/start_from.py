"""Start a training at the weights of a segmentor that has other classes.

mmengine's ``load_from`` loads what fits and notes the rest in the log, so that a
checkpoint of another variant trains on from random weights. Here the layers that may
differ are named, and any other difference is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor

from ..checkpoints.downloading import fetch, is_url
from ..checkpoints.reading import read_source
from ..errors import CheckpointError, SettingError
from ..registry import HOOKS
from ..state_dicts import compare, without

CLASSIFICATION_LAYERS = ('decode_head.conv_seg', 'auxiliary_head.conv_seg')


@HOOKS.register_module()
class StartFrom(Hook):
    """Load a segmentor's weights before the first iteration, but for some layers.

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
        """Load the weights, unless the training goes on from an earlier part."""
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
        wanted, found = model.state_dict(), self._read()
        differences = compare(wanted, found, ignored=self.leave_out)
        if differences:
            raise SettingError(
                f'StartFrom: {self.checkpoint} does not fit the model outside of '
                f'leave_out={list(self.leave_out)}: {differences}; give a checkpoint '
                'of the same variant and heads, or name in leave_out what begins anew'
            )
        loaded = without(found, self.leave_out)
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
