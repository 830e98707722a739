"""A hook that kills its process at a moment that is dangerous to a run."""

from __future__ import annotations

import io
import os
import resource
import signal
import sys
import threading

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmseg_twins.engine import preemption
from mmseg_twins.registry import HOOKS

MOMENTS = {
    'step': 'during a training step',
    'validation': 'during a validation',
    'writing': 'when a part of a checkpoint is written',
    'renaming': 'when a checkpoint is written, but not in its place',
    'noting': 'when a checkpoint is in its place, but not in `last_checkpoint`',
    'removing': 'before the checkpoint that it replaces is removed',
}
# Those at which the process is asked to end, once or twice.
SIGNALS = {
    'asked_in_step': 'a signal during a training step',
    'asked_in_validation': 'a signal during a validation',
    'asked_before': 'a signal while the first batches load',
    'asked_twice': 'two signals during a training step, the second to end at once',
}
# Python's audit event before the file operations of three moments, and the file.
OPERATIONS = {
    'renaming': ('os.rename', 'iter_'),
    'noting': ('os.rename', 'last_checkpoint'),
    'removing': ('os.remove', 'iter_'),
}


@HOOKS.register_module()
class Kill(Hook):
    """Kills the process with SIGKILL, so that nothing of it runs any more.

    At moments of ``SIGNALS`` it gets SIGUSR1, which ends it in its own time.

    While a checkpoint is written, the kernel kills the process with SIGXFSZ at a limit
    to the size of files, which is as sudden and cuts the file at a given byte.

    Args:
        moment: a key of ``MOMENTS`` or ``SIGNALS``.
        at: iterations done by then.
        share: how far into it, from 0 to 1: of the bytes of a checkpoint, of the images
            of a validation, of the 0.1 s or so of a training step.
    """

    priority = 'LOWEST'  # after the hooks that prepare what is written

    def __init__(self, *, moment: str, at: int, share: float) -> None:
        self.moment = moment
        self.at = at
        self.share = share

    def before_train_epoch(self, runner: Runner) -> None:
        if self.moment == 'asked_before':
            ask()

    def before_train_iter(self, runner: Runner, batch_idx, data_batch=None) -> None:
        if runner.iter + 1 == self.at and self.moment.startswith('asked'):
            if self.moment == 'asked_in_step':
                ask()
            elif self.moment == 'asked_twice':
                preemption.GRACE = 0.0
                ask()
                ask()
        if self.moment == 'step' and runner.iter + 1 >= self.at:
            threading.Timer(self.share * 0.1, kill).start()

    def before_val_iter(self, runner: Runner, batch_idx, data_batch=None) -> None:
        if self.moment == 'asked_in_validation' and runner.iter >= self.at:
            ask()

    def after_val_iter(
        self, runner: Runner, batch_idx, data_batch=None, outputs=None
    ) -> None:
        done = (batch_idx + 1) / len(runner.val_dataloader)
        if self.moment == 'validation' and runner.iter >= self.at and done > self.share:
            kill()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if checkpoint['meta']['iter'] < self.at:
            return
        if self.moment == 'writing':
            with io.BytesIO() as buffer:
                torch.save(checkpoint, buffer)
                limit_file_size(int(self.share * buffer.tell()))
        elif self.moment in OPERATIONS:
            kill_before(*OPERATIONS[self.moment])


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def ask() -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


def kill_before(operation: str, name: str) -> None:
    """Kills the process before an operation on a file whose name begins with this."""

    def audit(event: str, arguments: tuple) -> None:
        if event == operation:
            # Source, target and two handles of folders; or a file and a handle.
            path = arguments[1] if event == 'os.rename' else arguments[0]
            if os.path.basename(os.fspath(path)).startswith(name):
                kill()

    sys.addaudithook(audit)


def limit_file_size(size: int) -> None:
    """Lets the kernel kill the process when a file grows beyond a size in bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
