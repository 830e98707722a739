"""Lets a resumed training go on with the random numbers of one that never stopped.

States of generators could be saved with a checkpoint and put back. They would have to
be gathered from each process of the run and from each worker of its data loaders, which
are ahead of the training by some batches. Instead the generators are seeded, before
each iteration and each sample, with numbers that follow from the seed and from where
the training stands. Nothing needs to be saved, and validation, which draws numbers too,
cannot change the training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import BatchSampler, DataLoader

from ..registry import HOOKS
from .batches import NumberedBatches, Purpose, SeededDataset, seed_generators


@HOOKS.register_module()
class ExactResume(Hook):
    """Derives a training's random numbers from its seed and from where it stands.

    That is: the order of the data, their augmentations, in worker processes too, and
    what the model draws (dropout, stochastic depth). Batches that were trained on are
    passed over without loading them. A seed that mmengine drew itself, because the
    config has none, is taken up again from the checkpoint.

    Works with mmengine's two training loops and a ``train_dataloader`` that is given
    as a config.

    Example:
        >>> default_hooks = dict(resuming=dict(type='mmseg_twins.ExactResume'))
    """

    # Before mmengine's DistSamplerSeedHook, which tells the sampler its epoch.
    priority = 'HIGH'

    def __init__(self) -> None:
        self._seed = self._rank = 0
        self._is_replaced = False

    def before_train(self, runner: Runner) -> None:
        """Look up the seed, which a checkpoint may have changed by now."""
        self._rank, _ = get_dist_info()
        options = runner._randomness_cfg
        # With this option, mmengine has added the rank to what all have in common.
        apart = options.get('diff_rank_seed', False)
        self._seed = runner.seed - (self._rank if apart else 0)
        self._is_replaced = False

    def before_train_epoch(self, runner: Runner) -> None:
        """Replace the data loader, once all hooks have looked at mmengine's."""
        if self._is_replaced:
            return
        self._is_replaced = True
        given = runner._train_dataloader
        if not isinstance(given, Mapping):
            runner.logger.warning(
                'ExactResume: the train_dataloader is an object, not a config; its '
                'order and augmentations stay as they are'
            )
            return
        loop = runner.train_loop
        old = loop.dataloader
        loader = self._make_loader(runner, given, old.dataset)
        # A loop over iterations has started to load already; its workers end with it.
        if hasattr(loop, 'dataloader_iterator'):
            loop.dataloader_iterator = _Remaining(loader, loop.iter)
        old._iterator = None
        loop.dataloader = loader

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None
    ) -> None:
        """Seed what the model draws from; processes of a run draw differently."""
        seed_generators(self._seed, Purpose.STEP, runner.iter, self._rank)

    def after_train(self, runner: Runner) -> None:
        """End the loader's workers, which wait for an endless training otherwise."""
        loop = runner.train_loop
        if isinstance(getattr(loop, 'dataloader_iterator', None), _Remaining):
            loop.dataloader_iterator.stop()
            loop.dataloader._iterator = None

    def _make_loader(
        self, runner: Runner, given: Mapping[str, Any], dataset
    ) -> DataLoader:
        options = dict(given)
        # `dataset` has been cut to this already.
        options.pop('num_batch_per_epoch', None)
        batch_size = options.pop('batch_size', None)
        drop_last = options.pop('drop_last', False)
        sampler = DATA_SAMPLERS.build(
            options['sampler'], default_args=dict(dataset=dataset, seed=self._seed)
        )
        if options.get('batch_sampler') is None:
            batches = BatchSampler(sampler, batch_size, drop_last)
        else:
            extra = {} if batch_size is None else dict(batch_size=batch_size)
            batches = DATA_SAMPLERS.build(
                options['batch_sampler'], default_args=dict(sampler=sampler, **extra)
            )
        rank, world_size = get_dist_info()
        loop = runner.train_loop
        numbered = NumberedBatches(
            batches,
            sampler=sampler,
            batch_size=batch_size or batches.batch_size,
            first=lambda: loop.iter,
            endless=not isinstance(loop, EpochBasedTrainLoop),
            rank=rank,
            world_size=world_size,
        )
        seeded = SeededDataset(dataset, self._seed)
        options.update(dataset=seeded, sampler=None, batch_sampler=numbered)
        return runner.build_dataloader(options, seed=runner.seed)


class _Remaining:
    """Iterates over a loader after giving nothing for the batches that are done.

    mmengine's loop asks for as many batches as it has trained on, and drops them.

    Args:
        loader: begins with the batch that is next.
        done: number of batches that are done.
    """

    def __init__(self, loader: DataLoader, done: int) -> None:
        self._loader = loader
        self._done = done
        self._batches: Iterator | None = None

    def __iter__(self) -> _Remaining:
        return self

    def __next__(self) -> Any:
        if self._done > 0:
            self._done -= 1
            return None
        if self._batches is None:
            self._batches = iter(self._loader)
        return next(self._batches)

    def stop(self) -> None:
        """Let go of what is loaded ahead."""
        self._batches = None
