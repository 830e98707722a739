"""Starts a training from a backbone, or from a segmentor with other classes.

mmengine's ``load_from`` loads the tensors that fit and only logs the rest, so that a
checkpoint of another variant leaves random weights. Here any difference is an error,
except in the auxiliary head and in layers that are left out on purpose.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor

from ..checkpoints.locating import locate
from ..checkpoints.reading import read_source
from ..checkpoints.weights import find_weights, is_name
from ..errors import CheckpointError, SettingError
from ..registry import HOOKS
from ..state_dicts import compare, without

BACKBONE, AUXILIARY_HEAD = 'backbone', 'auxiliary_head'
STAGE_NORMS = 'backbone.norm_list'  # of SVT; ImageNet classifiers have none
CLASSIFICATION_LAYERS = ('decode_head.conv_seg', 'auxiliary_head.conv_seg')


@HOOKS.register_module()
class StartFrom(Hook):
    """Loads weights before the first iteration, except for some layers.

    A bare backbone is loaded into the backbone, and the heads keep their weights; so do
    the norms after the stages, if the checkpoint is a classifier's without them. Of a
    segmentor, everything is loaded but the layers with one output for each class; its
    auxiliary head, which predictions do not use, is loaded only if it fits.

    A resumed training uses its own checkpoint instead. Hooks that follow the loading of
    checkpoints, such as ``EMAHook``, are called.

    Args:
        checkpoint: path, http(s) URL or ``twins://`` name of a backbone or segmentor in
            mmsegmentation's layout, in PyTorch's or the safetensors format. Nothing in
            it can run. None to start from scratch.
        leave_out: names of modules or tensors that are not loaded; by default the
            layers with one output for each class. Unknown names are ignored.

    Raises:
        SettingError: ``leave_out`` is not a sequence of names, there are no published
            weights of that name, or the checkpoint differs from the model elsewhere.
        CheckpointError: the checkpoint cannot be read.

    Example:
        >>> custom_hooks = [
        ...     dict(type='mmseg_twins.StartFrom', checkpoint='twins://svt-s')
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
                f'StartFrom: leave_out={leave_out!r} is not a list of names, such as '
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
        state = model.state_dict()
        loaded = self.select(read_weights(str(self.checkpoint)), state)
        model.load_state_dict({**state, **loaded})
        new = parts_without(state, loaded)
        runner.logger.info(
            f'StartFrom: loaded {len(loaded)} tensors from {self.checkpoint}; left '
            f'out: {", ".join(new) or "none"}'
        )
        runner.call_hook(
            'after_load_checkpoint', checkpoint=dict(state_dict=model.state_dict())
        )

    def select(
        self, found: Mapping[str, Tensor], state: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint to load, by the model's names.

        Args:
            found: the checkpoint's tensors.
            state: the model's.

        Raises:
            SettingError: the checkpoint does not fit.
        """
        wanted, leave_out = state, self.leave_out
        if not only(found, BACKBONE):
            found = {f'{BACKBONE}.{name}': value for name, value in found.items()}
            wanted = only(state, BACKBONE)
            if not only(found, STAGE_NORMS):
                leave_out = (*leave_out, STAGE_NORMS)
        heads = (only(names, AUXILIARY_HEAD) for names in (wanted, found))
        if compare(*heads, ignored=leave_out):
            leave_out = (*leave_out, AUXILIARY_HEAD)
        differences = compare(wanted, found, ignored=leave_out)
        if differences:
            raise SettingError(
                f'StartFrom: {self.checkpoint} does not fit the model outside of '
                f'leave_out={list(self.leave_out)}: {differences}; {self.remedy()}'
            )
        return without(found, leave_out)

    def remedy(self) -> str:
        """Return how to fix a checkpoint that does not fit."""
        if is_name(str(self.checkpoint)):
            config = find_weights(str(self.checkpoint)).config
            return f'inherit from the config that these weights fit, {config}'
        return (
            'give a checkpoint of the same variant and heads, or add what differs to '
            'leave_out'
        )


def only(state: Mapping[str, Tensor], module: str) -> dict[str, Tensor]:
    """Return a module's part of a state dict."""
    return {
        name: value for name, value in state.items() if name.startswith(f'{module}.')
    }


def parts_without(names: Iterable[str], loaded: Collection[str]) -> list[str]:
    """Return the tensors that are not loaded, or parts without any that is."""
    begun = {name.partition('.')[0] for name in loaded}
    new = [name for name in names if name not in loaded]
    parts = [name.partition('.')[0] for name in new]
    shown = (n if part in begun else part for n, part in zip(new, parts, strict=True))
    return list(dict.fromkeys(shown))


def read_weights(source: str) -> Mapping[str, Tensor]:
    """Return the state dict of a file, URL or name.

    Raises:
        SettingError: there are no published weights of that name.
        CheckpointError: it cannot be found, downloaded or read.
    """
    try:
        return read_source(locate(source, progress=False)).state
    except (CheckpointError, OSError) as error:
        raise CheckpointError(f'StartFrom: {error}') from error
