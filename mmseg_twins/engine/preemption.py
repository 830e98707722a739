"""Ends a training at a scheduler's signal, after saving a checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import active_children
from types import FrameType
from typing import NoReturn

import torch
from mmengine.dist import (
    all_reduce,
    barrier,
    broadcast_object_list,
    get_comm_device,
    get_world_size,
    is_main_process,
)
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import SettingError
from ..interrupts import GRACE
from ..registry import HOOKS
from .checkpoint_hook import CheckpointHook

#: Exit status of a run that was ended by a signal and can be resumed: EX_TEMPFAIL.
STATUS = 75


class Preempted(SystemExit):
    """Ends the process with the status ``STATUS``, without a traceback."""

    def __init__(self) -> None:
        super().__init__(STATUS)


class NoBatchYet(BaseException):
    """Raised by the signal handler to end the wait for a first batch."""


@HOOKS.register_module()
class Preemption(Hook):
    """Ends a training at a signal, after saving a checkpoint.

    At the first signal the current iteration is finished, with ``accumulative_counts``
    all up to the optimizer's next step; a validation ends after its current batch, and
    the resumed run repeats it. All processes of a run end at the same iteration, at
    most one later than a single process would, whichever of them got the signal. A
    checkpoint is saved, and the process exits with status 75. A single process does not
    wait for the first batch of a training, an epoch or a validation. Before the first
    iteration there is nothing to save. A signal that arrives more than 3 seconds after
    the first has its usual effect.

    Processes agree by reducing one number per iteration and read the result an
    iteration later, so that nothing waits for an accelerator. They also agree during a
    validation if all have the same number of batches, as with mmengine's samplers;
    otherwise the validation is finished first.

    Data loading processes ignore the signals, provided that they start after this hook;
    with ``ExactResume``, those of a training do.

    Args:
        signals: names of the signals.
        requeue: a shell command that submits the run again, such as
            ``'scontrol requeue $SLURM_JOB_ID'``. The first process runs it after the
            checkpoint is saved.

    Raises:
        SettingError: a signal does not exist or cannot be handled, or there is no
            ``mmseg_twins.CheckpointHook``.

    Example:
        >>> default_hooks = dict(preemption=dict(type='mmseg_twins.Preemption'))
    """

    # After the hooks that change or save checkpoints.
    priority = 'LOWEST'

    def __init__(
        self,
        signals: Sequence[str] = ('SIGTERM', 'SIGUSR1', 'SIGINT'),
        requeue: str | None = None,
    ) -> None:
        self.signals = [signal_named(name) for name in signals]
        self.requeue = requeue
        self._received: signal.Signals | None = None
        self._received_at = 0.0
        self._originals: dict[signal.Signals, signal._HANDLER] = {}
        # Data loaders whose processes ignore signals, and their worker_init_fn before.
        self._shielded: dict[DataLoader, Callable | None] = {}
        self._pid = 0
        # Whether this is before the first iteration, and before the first batch of a
        # training, an epoch or a validation.
        self._is_starting = self._awaits_batch = False
        self._is_validating = False
        self._is_polled = True  # whether processes agree during validations
        self._ends_with_epoch = False
        self._pending: Tensor | None = None

    def before_run(self, runner: Runner) -> None:
        """Handle signals while the training loop runs."""
        loop = runner._train_loop
        if not isinstance(loop, BaseLoop):  # a test or a mere validation
            return
        if not any(isinstance(hook, CheckpointHook) for hook in runner.hooks):
            raise SettingError(
                'Preemption: no hook saves the checkpoint; set default_hooks='
                "dict(checkpoint=dict(type='mmseg_twins.CheckpointHook', ...))"
            )
        loop.run = partial(self._handle_signals, runner, loop.run)

    def before_train_epoch(self, runner: Runner) -> None:
        """Let data loading processes that start from now on ignore the signals."""
        self._shield(runner.train_loop.dataloader)
        self._await_batch(runner, is_validating=False)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """Note that from now on there is something to save."""
        self._is_starting = self._awaits_batch = self._is_validating = False

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        """End the run here, or with the epoch if this is its last iteration."""
        loop, done = runner.train_loop, runner.iter + 1
        if not self._agree() or has_unused_gradients(runner, done):
            return
        by_epoch = isinstance(loop, EpochBasedTrainLoop)
        if by_epoch and done % len(loop.dataloader) == 0:
            self._ends_with_epoch = True
        else:
            self._end(runner, done, runner.epoch)

    def after_train_epoch(self, runner: Runner) -> None:
        """End the run after an epoch, once its schedulers have been stepped."""
        if self._ends_with_epoch:
            self._end(runner, runner.iter, runner.epoch + 1)

    def before_val_epoch(self, runner: Runner) -> None:
        """Find out whether all processes have the same number of batches."""
        if self._originals and get_world_size() > 1:
            count = len(runner.val_loop.dataloader)
            counts = torch.tensor([count, -count], device=get_comm_device())
            all_reduce(counts, 'max')
            self._is_polled = bool(counts.sum() == 0)
        self._await_batch(runner, is_validating=True)

    def before_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """End the run during a validation, which the resumed run repeats."""
        self._awaits_batch = self._is_starting
        if not self._originals or not self._is_polled or not self._agree():
            return
        if not has_unused_gradients(runner, runner.iter):
            self._end(runner, runner.iter, runner.epoch)

    def _handle_signals(self, runner: Runner, run: Callable) -> torch.nn.Module:
        self._received = self._pending = None
        self._ends_with_epoch = False
        # One of several processes must not end before the others know of the signal.
        self._is_starting = self._awaits_batch = get_world_size() == 1
        self._pid = os.getpid()
        if runner.val_loop is not None:
            self._shield(runner.val_loop.dataloader)
        try:
            self._originals = {
                each: signal.signal(each, self._receive) for each in self.signals
            }
        except ValueError:  # Python handles signals in its main thread only
            runner.logger.warning(
                'Preemption: signals are not handled, because the training does not '
                'run in the main thread'
            )
        try:
            return run()
        except NoBatchYet:
            self._end_without_batch(runner)
        finally:
            self._restore()
            self._end_shielded(runner)

    def _await_batch(self, runner: Runner, *, is_validating: bool) -> None:
        """Let a signal end a single process's wait for a first batch."""
        self._is_validating = is_validating
        if not self._originals or get_world_size() > 1:
            return
        if self._is_starting or not has_unused_gradients(runner, runner.iter):
            self._awaits_batch = True
            if self._received is not None:
                raise NoBatchYet

    def _end_without_batch(self, runner: Runner) -> NoReturn:
        self._awaits_batch = False
        if not self._is_starting:
            self._end(runner, runner.iter, runner.epoch)
        runner.logger.warning(
            f'{self._received.name}: the run ends before its first iteration, with '
            f'nothing to save (exit status {STATUS})'
        )
        self._submit_again(runner)
        self._leave()

    def _shield(self, loader: DataLoader) -> None:
        """Let the future processes of a data loader ignore the signals."""
        if loader in self._shielded:  # in an earlier epoch
            return
        self._shielded[loader] = loader.worker_init_fn
        loader.worker_init_fn = partial(_ignore, self.signals, loader.worker_init_fn)

    def _end_shielded(self, runner: Runner) -> None:
        """End the processes that ignore signals, or Python's exit waits for them."""
        batches = getattr(runner.train_loop, 'dataloader_iterator', None)
        if hasattr(batches, 'close'):
            batches.close()
        for loader, worker_init_fn in self._shielded.items():
            loader.worker_init_fn = worker_init_fn
            loader._iterator = None
        self._shielded = {}

    def _restore(self) -> None:
        for each, original in self._originals.items():
            signal.signal(each, original)
        self._originals = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """Note a signal, without logging: it may have interrupted the logger."""
        if os.getpid() != self._pid:  # a process that was forked before it was shielded
            return
        now = time.monotonic()
        if self._received is None:
            self._received, self._received_at = signal.Signals(number), now
            if self._awaits_batch:
                raise NoBatchYet
        elif now - self._received_at > GRACE:
            self._restore()
            os.kill(self._pid, number)

    def _agree(self) -> bool:
        """Return whether any process has got a signal; all return the same."""
        received = self._received is not None
        if get_world_size() == 1:
            return received
        before, self._pending = (
            self._pending,
            torch.full((1,), float(received), device=get_comm_device()),
        )
        all_reduce(self._pending, 'max')
        return before is not None and bool(before)

    def _end(self, runner: Runner, done: int, epoch: int) -> NoReturn:
        """Save, submit the run again, and end the process.

        Args:
            done: finished iterations.
            epoch: finished epochs.
        """
        if self._is_validating:
            for each in runner.hooks:
                if isinstance(each, EMAHook):  # restores the model's own weights
                    each.after_val_epoch(runner)
        hook = next(each for each in runner.hooks if isinstance(each, CheckpointHook))
        path = hook.save_now(runner, done=done, epoch=epoch)
        names = [self._received.name if self._received else 'a signal elsewhere']
        broadcast_object_list(names)
        runner.logger.warning(
            f'{names[0]}: the run ends after iteration {done}; {path} is saved, and '
            f'--resume continues from there (exit status {STATUS})'
        )
        self._submit_again(runner)
        barrier()  # a launcher kills the other processes once the first one has ended
        self._leave()

    def _leave(self) -> NoReturn:
        """End the process, without waiting for batches that are being loaded."""
        if self._originals:
            # PyTorch's handler raises an error for each process that is killed.
            earlier = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            children = [each for each in active_children() if each.daemon]
            for each in children:
                each.kill()
            for each in children:
                each.join()
            signal.signal(signal.SIGCHLD, earlier or signal.SIG_DFL)
        raise Preempted

    def _submit_again(self, runner: Runner) -> None:
        if self.requeue is None or not is_main_process():
            return
        done = subprocess.run(self.requeue, shell=True, capture_output=True, text=True)
        said = (done.stderr or done.stdout).strip().replace('\n', ' ')
        if done.returncode == 0:
            runner.logger.info(f'The run is submitted again: {self.requeue} {said}')
        else:
            runner.logger.error(
                f'Preemption: requeue={self.requeue!r} failed with status '
                f'{done.returncode} ({said or "it printed nothing"}); submit the run '
                'again by hand, with --resume'
            )


def has_unused_gradients(runner: Runner, done: int) -> bool:
    """Return whether gradients are accumulated, which no checkpoint holds."""
    count = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
    return done % count != 0 and done != runner.max_iters


def signal_named(name: str) -> signal.Signals:
    """Return a signal by its name.

    Raises:
        SettingError: it does not exist or cannot be handled.
    """
    found = getattr(signal.Signals, str(name), None)
    if not isinstance(found, signal.Signals) or name in ('SIGKILL', 'SIGSTOP'):
        raise SettingError(
            f'Preemption: signals has {name!r}; give names of signals that a process '
            'can handle, such as SIGTERM, SIGUSR1, SIGUSR2 or SIGINT'
        )
    return found


def _ignore(
    signals: Sequence[signal.Signals], then: Callable | None, worker: int
) -> None:
    for each in signals:
        signal.signal(each, signal.SIG_IGN)
    if then is not None:
        then(worker)
