"""A hook that ends its process at one of the moments that are dangerous to a run."""

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

from mmseg_twins.registry import HOOKS

MOMENTS = {
    'step': 'during a training step',
    'validation': 'during a validation',
    'writing': 'when a part of a checkpoint is written',
    'renaming': 'when a checkpoint is written, but not in its place',
    'noting': 'when a checkpoint is in its place, but not in `last_checkpoint`',
    'removing': 'before the checkpoint that it replaces is removed',
}
# What Python reports before the file operations of three moments, and the file.
OPERATIONS = {
    'renaming': ('os.rename', 'iter_'),
    'noting': ('os.rename', 'last_checkpoint'),
    'removing': ('os.remove', 'iter_'),
}


@HOOKS.register_module()
class Kill(Hook):
    """Ends the process with SIGKILL, so that nothing of it runs any more.

    A checkpoint that is half written is the exception: there the kernel ends the
    process with SIGXFSZ at a limit to the size of files, which is as sudden and cuts
    the file at a given byte.

    Args:
        moment: a key of ``MOMENTS``.
        at: iterations done by then.
        share: how far into it, from 0 to 1: of the bytes of a checkpoint, of the images
            of a validation, of ``seconds``.
        seconds: about how long a training step takes.

    Raises:
        ValueError: there is no such moment.
    """

    # After the hooks that prepare what is written.
    priority = 'LOWEST'

    def __init__(
        self, *, moment: str, at: int, share: float = 0.5, seconds: float = 0.1
    ) -> None:
        if moment not in MOMENTS:
            raise ValueError(
                f'Kill: moment={moment!r} is none of {", ".join(map(repr, MOMENTS))}'
            )
        self.moment = moment
        self.at = at
        self.share = share
        self.seconds = seconds

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None
    ) -> None:
        """Lets a training step run for a while."""
        if self.moment == 'step' and runner.iter + 1 >= self.at:
            threading.Timer(self.share * self.seconds, end_at_once).start()

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Ends a validation at one of its images."""
        done = (batch_idx + 1) / len(runner.val_dataloader)
        if self.moment == 'validation' and runner.iter >= self.at and done > self.share:
            end_at_once()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Lays the trap for what writes the checkpoint."""
        if checkpoint['meta']['iter'] < self.at:
            return
        if self.moment == 'writing':
            with io.BytesIO() as buffer:
                torch.save(checkpoint, buffer)
                limit_files_to(int(self.share * buffer.tell()))
        elif self.moment in OPERATIONS:
            end_before(*OPERATIONS[self.moment])


def end_at_once() -> None:
    """Ends the process."""
    os.kill(os.getpid(), signal.SIGKILL)


def end_before(operation: str, name: str) -> None:
    """Ends the process when it is about to rename to, or to remove, a file.

    Args:
        operation: name of Python's audit event.
        name: how the file's name begins.
    """

    def audit(event: str, arguments: tuple) -> None:
        if event == operation:
            # Source, target and two handles of folders; or a file and a handle.
            path = arguments[1] if event == 'os.rename' else arguments[0]
            if os.path.basename(os.fspath(path)).startswith(name):
                end_at_once()

    sys.addaudithook(audit)


def limit_files_to(size: int) -> None:
    """Lets the kernel end the process when a file grows beyond a size in bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
