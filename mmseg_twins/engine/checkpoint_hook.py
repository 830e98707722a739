"""mmengine's CheckpointHook, safe against a kill at any moment.

mmengine 0.10.7 writes checkpoints and ``last_checkpoint`` in place, and removes an
outdated checkpoint, the best one too, before it writes its replacement. A run that is
killed between a checkpoint and the end of the next validation resumes without that
validation.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from mmengine.dist import all_gather_object, broadcast_object_list, is_main_process
from mmengine.fileio import LocalBackend, get_file_backend, register_backend
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from ..checkpoints.writing import replacing
from ..errors import CheckpointError
from ..registry import HOOKS
from .latest import LAST, digest, find_whole_checkpoint

BACKEND = 'mmseg_twins.atomic'
VALIDATED = 'last_validation'
OUTDATED = 'outdated_ckpts'
# Names that `replacing` gives to temporary files of checkpoints and of the files above.
TEMPORARY = re.compile(rf'\.(.+\.pth|{LAST}|{VALIDATED})\.\w{{8}}\.tmp')


class AtomicBackend(LocalBackend):
    """mmengine's backend of local files, with atomic writes and deferred removals.

    Attributes:
        outdated: paths that :meth:`remove_outdated` removes.
    """

    def __init__(self) -> None:
        self.outdated: list[str] = []

    def put(self, obj: bytes | memoryview, filepath: str | Path) -> None:
        """Write a file; an earlier one is replaced only when the new one is complete.

        Raises:
            OSError: it could not be written; an earlier file is unchanged.
        """
        path = Path(filepath)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, force=True) as temporary:
            temporary.write_bytes(obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write text as :meth:`put` writes bytes."""
        self.put(obj.encode(encoding), filepath)

    def remove(self, filepath: str | Path) -> None:
        """Mark a file or folder for removal."""
        self.outdated.append(str(filepath))

    rmtree = remove

    def remove_outdated(self) -> None:
        """Remove the marked files and folders; some may be gone already."""
        while self.outdated:
            path = Path(self.outdated[0])
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            del self.outdated[0]


# Importing the module a second time, as test runners do, registers it again.
register_backend(BACKEND, AtomicBackend, force=True)


@HOOKS.register_module()
class CheckpointHook(MMEngineCheckpointHook):
    """Saves checkpoints atomically, and resumes from the newest intact one.

    Takes mmengine's arguments. On local disks, files are written completely or not at
    all, and outdated ones are removed after that. Other storage is written as by
    mmengine.

    ``last_validation`` in the work dir has the iteration or epoch of the last finished
    validation. A resumed run repeats a validation that did not finish.

    Example:
        >>> default_hooks = dict(
        ...     checkpoint=dict(
        ...         type='mmseg_twins.CheckpointHook', by_epoch=False, interval=8000
        ...     )
        ... )
    """

    _is_training = False

    def before_run(self, runner: Runner) -> None:
        """Choose the checkpoint to resume from, before mmengine does.

        Raises:
            CheckpointError: all checkpoints are damaged, or processes see different
                ones.
        """
        if runner._resume and runner._load_from is None:
            runner._load_from = find_whole_checkpoint(runner.work_dir)
        if runner._resume:
            require_same(runner._load_from or 'no checkpoint', runner.work_dir)

    def before_train(self, runner: Runner) -> None:
        """Clean up after a killed run, and repeat its last validation if need be.

        Raises:
            CheckpointError: processes resume from different iterations or files.
        """
        super().before_train(runner)
        content = digest(runner._load_from) if runner._resume else ''
        found = f'{runner._load_from} (iteration {runner.iter}{content})'
        require_same(found, runner.work_dir)
        if isinstance(self.file_backend, LocalBackend):
            self.backend_args = dict(backend=BACKEND)
            self.file_backend = get_file_backend(backend_args=self.backend_args)
        if is_main_process():
            self._clean_up(runner)
        self._is_training = True
        # All processes have to validate, or none, whatever files they see.
        due = [is_due(runner) and self._last_validation(runner) != position(runner)]
        broadcast_object_list(due)
        if due[0]:
            runner.logger.info(
                f'The validation at {position(runner)} did not finish: repeating it.'
            )
            runner.val_loop.run()

    def save_now(self, runner: Runner, *, done: int, epoch: int) -> str:
        """Save a checkpoint of a run that ends early, unless there is one already.

        Within an epoch, a hook that counts by epochs saves ``iter_N.pth``, to which
        ``max_keep_ckpts`` does not apply.

        Args:
            done: finished iterations.
            epoch: finished epochs.

        Returns:
            The path of the checkpoint.
        """
        step = epoch if self.by_epoch else done
        meta = dict(epoch=epoch, iter=done)
        if self.by_epoch and done != epoch * len(runner.train_loop.dataloader):
            name = f'iter_{done}.pth'
            path = self.file_backend.join_path(self.out_dir, name)
            self._write(runner, name, meta, by_epoch=False)
            self._note_last(runner, path)
            return path
        if self.last_ckpt != self._path(step):
            self._save_checkpoint_with_step(runner, step, meta)
        return self._path(step)

    def after_val(self, runner: Runner) -> None:
        """Record that a validation has finished."""
        if self._is_training and is_main_process():
            AtomicBackend().put_text(
                f'{position(runner)}\n', Path(runner.work_dir, VALIDATED)
            )

    def _clean_up(self, runner: Runner) -> None:
        if runner.iter == 0:
            Path(runner.work_dir, VALIDATED).unlink(missing_ok=True)
        if not isinstance(self.file_backend, AtomicBackend):
            return
        for folder in {Path(self.out_dir), Path(runner.work_dir)}:
            for file in folder.glob('.*.tmp'):
                if TEMPORARY.fullmatch(file.name):
                    file.unlink()
        if runner.iter > 0:
            self.file_backend.outdated += runner.message_hub.get_info(OUTDATED, [])
            self.file_backend.remove_outdated()

    def _last_validation(self, runner: Runner) -> int | None:
        try:
            return int(Path(runner.work_dir, VALIDATED).read_text(encoding='utf-8'))
        except (FileNotFoundError, ValueError):
            return None

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        """Save as mmengine does, but remove outdated checkpoints last."""
        if not isinstance(self.file_backend, AtomicBackend):
            super()._save_checkpoint_with_step(runner, step, meta)
            return
        hub = runner.message_hub
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                self.file_backend.remove(self._path(self.keep_ckpt_ids.popleft()))
            self.keep_ckpt_ids.append(step)
            hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self.last_ckpt = self._path(step)
        hub.update_info('last_ckpt', self.last_ckpt)
        # If the run is killed before the removal, the resumed run removes them.
        hub.update_info(OUTDATED, list(self.file_backend.outdated))
        self._write(
            runner, self.filename_tmpl.format(step), meta, by_epoch=self.by_epoch
        )
        self._note_last(runner, self.last_ckpt)
        if is_main_process():
            self.file_backend.remove_outdated()
        self.file_backend.outdated.clear()

    def _write(self, runner: Runner, name: str, meta: dict, *, by_epoch: bool) -> None:
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )

    def _note_last(self, runner: Runner, path: str) -> None:
        if is_main_process():
            AtomicBackend().put_text(path, Path(runner.work_dir, LAST))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        """Save as mmengine does, but remove the former best checkpoint last."""
        super()._save_best_checkpoint(runner, metrics)
        # Before the first regular checkpoint, nothing else removes it.
        if isinstance(self.file_backend, AtomicBackend) and is_main_process():
            self.file_backend.remove_outdated()

    def _path(self, step: int) -> str:
        return self.file_backend.join_path(
            self.out_dir, self.filename_tmpl.format(step)
        )


def require_same(found: str, work_dir: str) -> None:
    """Check that all processes of a run resume from the same checkpoint.

    Raises:
        CheckpointError: they do not; all of them raise it.
    """
    everywhere = all_gather_object(found)
    for rank, other in enumerate(everywhere):
        if other != everywhere[0]:
            raise CheckpointError(
                f'the processes of the run disagree on where to resume: process 0 '
                f'finds {everywhere[0]}, process {rank} {other}; {work_dir} must be '
                'the same folder on all machines'
            )


def position(runner: Runner) -> int:
    """Return the finished epochs or iterations, whichever the loop counts by."""
    by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
    return runner.epoch if by_epoch else runner.iter


def is_due(runner: Runner) -> bool:
    """Return whether mmengine's training loops validate at this position."""
    loop, done = runner.train_loop, position(runner)
    if runner.val_loop is None or done == 0:
        return False
    if not isinstance(loop, (EpochBasedTrainLoop, IterBasedTrainLoop)):
        return False
    loop._decide_current_val_interval()
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    end = loop.max_epochs if by_epoch else loop.max_iters
    return done >= loop.val_begin and (done % loop.val_interval == 0 or done == end)
