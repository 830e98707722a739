"""Whether implementations compute the same; only then are they compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarking.errors import DisagreementError

# What is compared of a step, by kind: arrays in the same order everywhere.
Outputs = Mapping[str, Sequence[np.ndarray]]

# Allowed relative difference (RMS of the difference, over RMS) of maps, logits and
# loss. fp32 rounds to 6e-8, fp16 to 5e-4, bf16 to 4e-3, and dozens of layers add up.
TOLERANCES = {'fp32': 1e-4, 'fp16': 1e-2, 'bf16': 5e-2}
# Gradients go through everything twice.
GRADIENT_FACTOR = 4


def tolerance(kind: str, dtype: str) -> float:
    """The relative difference that is allowed.

    Args:
        kind: ``'gradients'``, or another key of ``Outputs``.
        dtype: a key of ``TOLERANCES``.
    """
    return TOLERANCES[dtype] * (GRADIENT_FACTOR if kind == 'gradients' else 1)


def relative_difference(
    ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]
) -> float:
    """RMS of the difference over the RMS of ``theirs``, over all arrays together.

    Returns:
        Infinity where shapes differ, ``theirs`` is 0, or a number is not finite.
    """
    if [x.shape for x in ours] != [y.shape for y in theirs]:
        return math.inf
    difference = total = 0.0
    for x, y in zip(ours, theirs, strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        difference += float(np.square(x - y).sum())
        total += float(np.square(y).sum())
    ratio = math.sqrt(difference / total) if total else math.inf
    return ratio if math.isfinite(ratio) else math.inf


def compare(
    ours: Outputs, theirs: Outputs, *, dtype: str, names: tuple[str, str]
) -> dict[str, float]:
    """Compares what two implementations computed from the same.

    Args:
        ours: outputs of one.
        theirs: outputs of the other, the reference.
        dtype: type that they computed in, a key of ``TOLERANCES``.
        names: what to call them.

    Returns:
        The largest relative difference for each kind of output. Maps are compared
        one by one, gradients all together: some are 0 up to rounding.

    Raises:
        DisagreementError: a difference is larger than allowed.
    """
    if ours.keys() != theirs.keys():
        raise DisagreementError(
            f'{names[0]} gives {", ".join(ours)}, {names[1]} {", ".join(theirs)}; '
            'they cannot be compared'
        )
    differences = {}
    for kind in theirs:
        if kind == 'gradients' or len(ours[kind]) != len(theirs[kind]):
            found = relative_difference(ours[kind], theirs[kind])
        else:
            found = max(
                relative_difference([x], [y])
                for x, y in zip(ours[kind], theirs[kind], strict=True)
            )
        allowed = tolerance(kind, dtype)
        if not found <= allowed:
            raise DisagreementError(
                f'{kind} of {names[0]} and {names[1]} differ by {found:.1e} (relative '
                f'RMS), and {allowed:.0e} is allowed in {dtype}; what does not compute '
                'the same is not compared'
            )
        differences[kind] = found
    return differences
