"""Refuses a checkpoint that does not fit the model.

mmengine loads the tensors that fit and only logs the rest, so that a checkpoint of
another variant, or with other classes, leaves random weights, whose scores look like
results.
"""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner

from ..errors import CheckpointError
from ..registry import HOOKS
from ..state_dicts import TRAINING_ONLY, compare, strip_data_parallel


@HOOKS.register_module()
class StrictLoading(Hook):
    """Compares a checkpoint with the model before its weights are loaded.

    ``tools/test.py`` adds this hook to every config.

    Raises:
        CheckpointError: a tensor outside the auxiliary head is missing, unexpected or
            mismatched.
    """

    priority = 'VERY_HIGH'  # before hooks that change the checkpoint

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the state dicts."""
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        found = strip_data_parallel(checkpoint.get('state_dict', checkpoint))
        differences = compare(model.state_dict(), found, ignored=TRAINING_ONLY)
        if differences:
            raise CheckpointError(
                f'{runner.cfg.get("load_from") or "the checkpoint"} does not fit the '
                f'config: {differences}'
            )
