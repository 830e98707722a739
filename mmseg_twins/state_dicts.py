"""Compare the state dict of a checkpoint with that of a model."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Size, Tensor

from .errors import CheckpointError

DATA_PARALLEL = re.compile(r'^(module\.)+')
# Prediction does not need these modules: checkpoint and model may differ in them.
TRAINING_ONLY = ('auxiliary_head',)
NAMED = 3  # number of tensors that a message names


@dataclass(frozen=True)
class Differences:
    """The differences between a checkpoint and a model; false if there are none.

    Attributes:
        missing: names that only the model has.
        unexpected: names that only the checkpoint has.
        mismatched: for each name with unequal shapes, the checkpoint's and the model's.
        nothing_fits: whether checkpoint and model share no name at all.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: Mapping[str, tuple[Size, Size]]
    nothing_fits: bool

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        """Return the end of a sentence that begins with "CHECKPOINT does not fit: "."""
        if self.nothing_fits:
            first = self.unexpected[0] if self.unexpected else 'none'
            return (
                f'none of its tensors (the first: {first!r}) has the name of a tensor '
                f'of the model (the first: {self.missing[0]!r}); '
                '`mmseg-twins convert` converts checkpoints of other projects, and a '
                'bare backbone belongs in init_cfg of the backbone, or in the hook '
                'mmseg_twins.StartFrom'
            )
        # First the layers whose shapes depend on the number of classes.
        shapes = sorted(
            self.mismatched.items(), key=lambda item: 'conv_seg' not in item[0]
        )
        hint = ': another number of classes' if 'conv_seg' in str(shapes[:1]) else ''
        reshaped = [
            f'{name} is {shape_of(found)} in the checkpoint and {shape_of(wanted)} in '
            'the model'
            for name, (found, wanted) in shapes
        ]
        kinds = (
            (reshaped, f'of another shape{hint}'),
            (self.missing, 'missing'),
            (self.unexpected, 'unexpected'),
        )
        return ', '.join(
            f'{len(names)} {"tensor is" if len(names) == 1 else "tensors are"} {kind} '
            f'({some(names)})'
            for names, kind in kinds
            if names
        )


def compare(
    wanted: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    *,
    ignored: Collection[str] = (),
) -> Differences:
    """Compare the names and shapes of two state dicts.

    Args:
        wanted: the model's.
        found: the checkpoint's.
        ignored: names of modules or tensors that may differ.
    """
    wanted = without(wanted, ignored)
    found = without(found, ignored)
    return Differences(
        missing=tuple(name for name in wanted if name not in found),
        unexpected=tuple(name for name in found if name not in wanted),
        mismatched={
            name: (found[name].shape, wanted[name].shape)
            for name in wanted
            if name in found and found[name].shape != wanted[name].shape
        },
        nothing_fits=bool(wanted) and not wanted.keys() & found.keys(),
    )


def without(state: Mapping[str, Tensor], modules: Collection[str]) -> dict[str, Tensor]:
    """Return a state dict without the named modules and tensors."""
    return {
        name: value
        for name, value in state.items()
        if not any(name == one or name.startswith(f'{one}.') for one in modules)
    }


def strip_data_parallel(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict without DataParallel's prefix ``module.``.

    Raises:
        CheckpointError: two tensors have the same name without it.
    """
    stripped: dict[str, Tensor] = {}
    for name, value in state.items():
        short = DATA_PARALLEL.sub('', name)
        if short in stripped:
            raise CheckpointError(
                f"there are two tensors {short!r}, one with the prefix 'module.'"
            )
        stripped[short] = value
    return stripped


def shape_of(shape: Size) -> str:
    """Return a shape as text, such as ``32x3x4x4``."""
    return 'x'.join(map(str, shape)) or 'a number'


def some(names: Collection[str]) -> str:
    """Return the first few of some names, for a message."""
    more = ', ...' if len(names) > NAMED else ''
    return ', '.join(list(names)[:NAMED]) + more
