"""Batches whose order and augmentations follow from the seed and their number.

mmengine 0.10.7 loads every batch that a resumed run has trained on, and drops it; its
augmentations draw from generators that each process of a data loader keeps for itself,
whose states no checkpoint has. Here a sample carries its number in the training, from
which its generators are seeded. So a resumed training can begin with any batch without
loading those before it, and neither the number of workers nor, with mmengine's
InfiniteSampler, the number of processes that share a batch changes what is trained on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sized
from enum import IntEnum
from itertools import islice
from typing import Any

import numpy as np
import torch


class Purpose(IntEnum):
    """What random numbers are for; keeps the streams of one seed apart."""

    STEP = 0
    SAMPLE = 1


def seed_generators(
    seed: int, purpose: Purpose, *numbers: int, devices: bool = True
) -> None:
    """Seed the generators of Python, numpy and PyTorch.

    Args:
        seed: the run's seed.
        purpose: what for.
        numbers: what tells one use from the others, such as an iteration.
        devices: whether those of accelerators are seeded too.
    """
    sequence = np.random.SeedSequence((seed, purpose, *numbers))
    for_python, for_torch = sequence.generate_state(2, np.uint64).tolist()
    random.seed(for_python)
    np.random.seed(sequence.generate_state(4))
    if devices:
        torch.manual_seed(for_torch)
    else:
        torch.default_generator.manual_seed(for_torch)


class NumberedIndex(int):
    """A sample's index in the dataset, with its number in the training."""

    number: int

    def __new__(cls, index: int, number: int) -> NumberedIndex:
        """Make the index; a number of its own cannot be changed."""
        self = super().__new__(cls, index)
        self.number = number
        return self

    def __getnewargs__(self) -> tuple[int, int]:  # type: ignore[override]
        return int(self), self.number


class SeededDataset:
    """A dataset that seeds the generators before each sample.

    Everything but its items is the dataset's.

    Args:
        dataset: a map-style dataset.
        seed: the run's seed.
    """

    def __init__(self, dataset: Sized, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """Give a sample, augmented by the number that ``index`` carries."""
        if isinstance(index, NumberedIndex):
            seed_generators(self.seed, Purpose.SAMPLE, index.number, devices=False)
        return self.dataset[int(index)]

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') or name == 'dataset':  # not there while unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __deepcopy__(self, memo: dict) -> SeededDataset:
        # mmengine copies a loader's config, and the dataset in it need not be copied.
        return self


class NumberedBatches:
    """A batch sampler whose indices are numbered through the whole training.

    Args:
        batches: the batch sampler that chooses the indices.
        sampler: the sampler it draws from.
        batch_size: of one process.
        first: gives the number of batches trained on when iteration begins.
        endless: Whether ``first()`` batches are passed over and epochs follow each
            other without an end, as iteration-based training has it. Otherwise an
            iteration is one epoch.
        rank: number of this process.
        world_size: number of processes.
    """

    def __init__(
        self,
        batches: Iterable[list[int]],
        *,
        sampler: Iterable[int],
        batch_size: int,
        first: Callable[[], int],
        endless: bool,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.batches = batches
        self.sampler = sampler
        self.batch_size = batch_size
        self.first = first
        self.endless = endless
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[NumberedIndex]]:
        """Yield batches of indices."""
        first = self.first()
        batches = islice(self._epochs(), first, None) if self.endless else self.batches
        for number, batch in enumerate(batches, start=first):
            yield [
                NumberedIndex(index, self._number(number * self.batch_size + place))
                for place, index in enumerate(batch)
            ]

    def _number(self, local: int) -> int:
        # mmengine's samplers deal samples to the processes in turn.
        return local * self.world_size + self.rank

    def _epochs(self) -> Iterator[list[int]]:
        epoch, found = 0, True
        while found:
            if epoch > 0 and hasattr(self.sampler, 'set_epoch'):
                self.sampler.set_epoch(epoch)
            found = False
            for batch in self.batches:
                found = True
                yield batch
            epoch += 1

    def __deepcopy__(self, memo: dict) -> NumberedBatches:
        return self
