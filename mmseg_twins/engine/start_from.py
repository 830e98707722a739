"""Starts a training from a segmentor with other classes.

mmengine's ``load_from`` loads the tensors that fit and only logs the rest, so that a
checkpoint of another variant leaves random weights. Here any difference is an error,
except in the layers that are named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor

from ..checkpoints.downloading import locate
from ..checkpoints.reading import read_source
from ..errors import CheckpointError, SettingError
from ..registry import HOOKS
from ..state_dicts import compare, without

CLASSIFICATION_LAYERS = ('decode_head.conv_seg', 'auxiliary_head.conv_seg')


@HOOKS.register_module()
class StartFrom(Hook):
    """Loads a segmentor's weights before the first iteration, except for some layers.

    A resumed training uses its own checkpoint instead. Hooks that follow the loading of
    checkpoints, such as ``EMAHook``, are called.

    Args:
        checkpoint: path or http(s) URL of a segmentor of the same layout, in PyTorch's
            or the safetensors format. Nothing in it can run. None starts from scratch.
        leave_out: names of modules or tensors to leave as they are; by default the
            layers with one output for each class. Unknown names are ignored.

    Raises:
        SettingError: ``leave_out`` is no sequence of names, or the checkpoint differs
            from the model elsewhere.
        CheckpointError: the checkpoint cannot be read.

    Example:
        >>> custom_hooks = [
        ...     dict(type='mmseg_twins.StartFrom', checkpoint='segmentor.pth')
        ... ]
    """

    priority = 'VERY_HIGH'  # before hooks that look at the weights

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
        """Load the weights, unless the training is resumed."""
        if self.checkpoint is None:
            runner.logger.info('StartFrom: no checkpoint; training from scratch')
            return
        if runner.iter > 0:
            runner.logger.info(
                f'StartFrom: resuming at iteration {runner.iter}, without '
                f'{self.checkpoint}'
            )
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        wanted, found = model.state_dict(), read_weights(str(self.checkpoint))
        differences = compare(wanted, found, ignored=self.leave_out)
        if differences:
            raise SettingError(
                f'StartFrom: {self.checkpoint} does not fit the model outside of '
                f'leave_out={list(self.leave_out)}: {differences}; give a checkpoint '
                'of the same variant and heads, or add what differs to leave_out'
            )
        loaded = without(found, self.leave_out)
        model.load_state_dict({**wanted, **loaded})
        new = [name for name in wanted if name not in loaded]
        runner.logger.info(
            f'StartFrom: loaded {len(loaded)} tensors from {self.checkpoint}; left '
            f'out: {", ".join(new) or "none"}'
        )
        runner.call_hook(
            'after_load_checkpoint', checkpoint=dict(state_dict=model.state_dict())
        )


def read_weights(source: str) -> Mapping[str, Tensor]:
    """Return the state dict of a file or URL.

    Raises:
        CheckpointError: it cannot be found, downloaded or read.
    """
    try:
        return read_source(locate(source, progress=False)).state
    except (CheckpointError, OSError) as error:
        raise CheckpointError(f'StartFrom: {error}') from error
