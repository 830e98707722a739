"""Early stopping that continues in a resumed run.

mmengine 0.10.7 keeps the best score and the count of validations without progress in
memory only, so that a resumed run counts from zero.
"""

from __future__ import annotations

import json
from math import inf
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import EarlyStoppingHook
from mmengine.runner import Runner

from ..registry import HOOKS
from .checkpoint_hook import AtomicBackend, position

SCORES = 'validation_scores.json'


@HOOKS.register_module()
class EarlyStopping(EarlyStoppingHook):
    """mmengine's ``EarlyStoppingHook``, with the same result in a resumed run.

    Takes mmengine's arguments. ``validation_scores.json`` in the work dir has the
    monitored score of each validation, by its iteration or epoch: a checkpoint is
    written before its validation and cannot hold that score. Count and best score are
    computed from the scores up to the point where the run resumes, so that a longer
    ``patience`` also applies to a run that has stopped already.

    Example:
        >>> custom_hooks = [
        ...     dict(type='mmseg_twins.EarlyStopping', monitor='mIoU', min_delta=0.1)
        ... ]
    """

    # Before CheckpointHook repeats a validation that a killed run did not finish.
    priority = 'LOW'

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._scores: dict[int, float] = {}
        self._is_training = False

    def before_run(self, runner: Runner) -> None:
        """Do nothing; mmengine's hook requires a training loop even for a test."""

    def before_train(self, runner: Runner) -> None:
        """Continue from the last validation; end at once if it met the criterion."""
        self._is_training = True
        scores = [read_scores(Path(runner.work_dir, SCORES))]
        broadcast_object_list(scores)  # processes may see different files
        self._scores = scores[0]
        reason = self._replay(position(runner))
        if reason:
            runner.train_loop.stop_training = True
            runner.logger.info(f'The training has stopped already: {reason}')

    def after_val_epoch(
        self, runner: Runner, metrics: dict[str, Any] | None = None
    ) -> None:
        """Decide whether to stop, and save the score."""
        if not self._is_training:
            return
        if self.monitor not in (metrics or {}):
            super().after_val_epoch(runner, metrics)  # warns, or raises if strict
            return
        # A repeated validation counts once.
        now = position(runner)
        self._replay(now - 1)
        super().after_val_epoch(runner, metrics)
        self._scores[now] = float(metrics[self.monitor])
        if is_main_process():
            AtomicBackend().put_text(
                json.dumps(self._scores), Path(runner.work_dir, SCORES)
            )

    def _replay(self, last: int) -> str:
        """Set count and best score to those after a position; forget later scores.

        Returns:
            The reason to stop there; empty if there is none.
        """
        self._scores = {at: score for at, score in self._scores.items() if at <= last}
        self.wait_count = 0
        self.best_score = -inf if self.rule == 'greater' else inf
        reason = ''
        for at in sorted(self._scores):
            _, reason = self._check_stop_condition(self._scores[at])
        return reason


def read_scores(path: Path) -> dict[int, float]:
    """Return the scores in a file; none if it does not exist or is not valid."""
    try:
        scores = json.loads(path.read_text(encoding='utf-8'))
        return {int(at): float(score) for at, score in scores.items()}
    except (FileNotFoundError, ValueError, AttributeError, TypeError):
        return {}
