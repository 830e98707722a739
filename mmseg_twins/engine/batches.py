"""Batches whose order and augmentations depend on the seed and their number only.

When a run resumes, mmengine 0.10.7 loads every batch of the finished iterations and
drops it. Its augmentations draw from random number generators of each data loading
process, whose states are in no checkpoint. Here each sample carries its number in the
training, which seeds the generators. A resumed training starts with any batch without
loading those before it, and neither the number of workers nor, with mmengine's
InfiniteSampler, the number of processes that share a batch changes the samples.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sized
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler

# Purposes of random numbers, which keep the streams of one seed apart.
STEP, SAMPLE = 0, 1


def seed_generators(
    seed: int, purpose: int, *numbers: int, devices: bool = True
) -> None:
    """Seed the generators of Python, numpy and PyTorch.

    Args:
        purpose: ``STEP`` or ``SAMPLE``.
        numbers: what distinguishes one use from the others, such as an iteration.
        devices: whether to seed the generators of accelerators too.
    """
    sequence = np.random.SeedSequence((seed, purpose, *numbers))
    for_python, for_torch = sequence.generate_state(2, np.uint64).tolist()
    random.seed(for_python)
    np.random.seed(sequence.generate_state(4))
    if devices:
        torch.manual_seed(for_torch)
    else:
        torch.default_generator.manual_seed(for_torch)


class SeededDataset:
    """A dataset that seeds the generators before it loads a sample.

    Its keys are pairs of an index and the sample's number in the training. All other
    attributes are the dataset's.
    """

    def __init__(self, dataset: Sized, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        """Load a sample, with augmentations that depend on its number."""
        index, number = key
        # Worker processes must not initialize accelerators.
        seed_generators(self.seed, SAMPLE, number, devices=False)
        return self.dataset[index]

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') or name == 'dataset':  # absent while unpickling
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __deepcopy__(self, memo: dict) -> SeededDataset:
        return self  # mmengine copies the options of a data loader


class NumberedBatches:
    """A batch sampler that numbers samples through the whole training.

    Args:
        batches: the batch sampler that chooses the indices.
        first: returns the number of finished batches when iteration starts.
        endless: whether to yield epoch after epoch, as iteration-based training needs.
            Otherwise iteration yields the rest of one epoch.
    """

    def __init__(
        self,
        batches: BatchSampler,
        *,
        first: Callable[[], int],
        endless: bool,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.batches = batches
        self.sampler = batches.sampler  # mmengine tells it the epoch
        self.first = first
        self.endless = endless
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield batches of pairs, an index and the sample's number."""
        first = self.first()
        if self.endless:
            batches = islice(self._epochs(), first, None)
        else:
            batches = islice(self.batches, first % len(self.batches), None)
        for number, batch in enumerate(batches, start=first):
            # mmengine's samplers distribute samples to the processes in turn.
            start = number * self.batches.batch_size * self.world_size + self.rank
            yield list(zip(batch, count(start, self.world_size), strict=False))

    def _epochs(self) -> Iterator[list[int]]:
        for epoch in count():
            if epoch > 0 and hasattr(self.sampler, 'set_epoch'):
                self.sampler.set_epoch(epoch)
            batch = None
            for batch in self.batches:
                yield batch
            if batch is None:  # there is nothing to repeat
                return

    def __deepcopy__(self, memo: dict) -> NumberedBatches:
        return self
