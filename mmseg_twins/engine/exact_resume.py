"""Resume a training with the random numbers of a run that was never stopped.

The states of generators could be saved in checkpoints and restored. That would mean
gathering them from each process of the run and from each worker of its data loaders,
which are ahead of the training by some batches. Instead, the generators are seeded
before each iteration and each sample, with numbers derived from the seed and the
progress of the training. Nothing needs to be saved, and validation, which draws random
numbers too, cannot change the training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader, Dataset

from ..registry import HOOKS
from .batches import STEP, NumberedBatches, SeededDataset, seed_generators


@HOOKS.register_module()
class ExactResume(Hook):
    """Derives a training's random numbers from its seed and its progress.

    This covers the order of the data, the augmentations, also in worker processes, and
    the model (dropout, stochastic depth). Resuming skips finished batches without
    loading them. If the config has no seed, the one that mmengine drew is restored from
    the checkpoint.

    Works with mmengine's two training loops and a ``train_dataloader`` that is a
    config.

    Example:
        >>> default_hooks = dict(resuming=dict(type='mmseg_twins.ExactResume'))
    """

    # Before mmengine's DistSamplerSeedHook, which tells the sampler its epoch.
    priority = 'HIGH'

    def __init__(self) -> None:
        self._seed = self._rank = 0
        self._is_replaced = False

    def before_train(self, runner: Runner) -> None:
        """Look up the seed, which a checkpoint may have restored."""
        self._rank, _ = get_dist_info()
        # With this option, mmengine has added the rank to the common seed.
        differs = runner._randomness_cfg.get('diff_rank_seed', False)
        self._seed = runner.seed - (self._rank if differs else 0)
        self._is_replaced = False
        if runner.iter >= runner.max_iters:
            runner.logger.info(
                f'The training is complete: all {runner.max_iters} iterations were '
                'done before; to go on, raise train_cfg.max_iters or max_epochs'
            )

    def before_train_epoch(self, runner: Runner) -> None:
        """Replace the data loader, once all hooks have looked at mmengine's."""
        if self._is_replaced:
            return
        self._is_replaced = True
        given = runner._train_dataloader
        if not isinstance(given, Mapping):
            runner.logger.warning(
                'ExactResume: the train_dataloader is an object, not a config; its '
                'order and augmentations are unchanged'
            )
            return
        loop = runner.train_loop
        old = loop.dataloader
        loop.dataloader = self._make_loader(runner, given, old.dataset)
        # A loop over iterations has started to load already; its workers end here.
        if hasattr(loop, 'dataloader_iterator'):
            drops = not hasattr(loop, 'fast_forward_on_resume')
            loop.dataloader_iterator = RemainingBatches(
                loop.dataloader, loop.iter if drops else 0
            )
        old._iterator = None

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """Seed the model's generators, differently in each process of a run."""
        seed_generators(self._seed, STEP, runner.iter, self._rank)

    def after_train(self, runner: Runner) -> None:
        """End the loader's workers, which would load batches endlessly."""
        loop = runner.train_loop
        if isinstance(getattr(loop, 'dataloader_iterator', None), RemainingBatches):
            loop.dataloader_iterator.close()
            loop.dataloader._iterator = None

    def _make_loader(
        self, runner: Runner, given: Mapping[str, Any], dataset: Dataset
    ) -> DataLoader:
        loop = runner.train_loop
        options = {**given, 'dataset': SeededDataset(dataset, self._seed)}
        options.pop('num_batch_per_epoch', None)  # `dataset` has this length already
        # The old loader's sampler may have another seed, and has been used.
        fresh = runner.build_dataloader(options, seed=self._seed)
        for name in ('batch_size', 'drop_last'):
            options.pop(name, None)
        rank, world_size = get_dist_info()
        batches = NumberedBatches(
            fresh.batch_sampler,
            first=lambda: loop.iter,
            endless=not isinstance(loop, EpochBasedTrainLoop),
            rank=rank,
            world_size=world_size,
        )
        options.update(sampler=None, batch_sampler=batches)
        return runner.build_dataloader(options, seed=runner.seed)


class RemainingBatches:
    """The batches of a loader that starts after the finished ones.

    mmengine's loop fetches the finished batches and drops them. That of onedl-mmengine
    calls ``skip_iter`` for them, or nothing with ``fast_forward_on_resume``.

    Args:
        dropped: number of batches that the loop drops; None is returned for these.
    """

    def __init__(self, loader: DataLoader, dropped: int) -> None:
        self._loader = loader
        self._dropped = dropped
        self._batches: Iterator | None = None

    def __iter__(self) -> RemainingBatches:
        return self

    def __next__(self) -> Any:
        """Return the next batch; the loader starts when the loop needs one."""
        if self._dropped > 0:
            self._dropped -= 1
            return None
        if self._batches is None:
            self._batches = iter(self._loader)
        return next(self._batches)

    def skip_iter(self, num_iters: int) -> None:
        """Do nothing: the loader starts after the batches to skip."""

    def close(self) -> None:
        """Release the loader, so that its workers end."""
        self._batches = iter(())
