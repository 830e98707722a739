"""When outputs agree."""

from __future__ import annotations

import math

import numpy as np
import pytest
from benchmarking.agreement import (
    GRADIENT_FACTOR,
    TOLERANCES,
    compare,
    relative_difference,
)
from benchmarking.errors import DisagreementError

NAMES = ('package', 'built-in')


def test_difference_is_relative_to_the_reference():
    reference = [np.full((4,), 2.0), np.full((2, 2), -2.0)]
    assert relative_difference([1.1 * x for x in reference], reference) == (
        pytest.approx(0.1)
    )


@pytest.mark.parametrize(
    'ours',
    [
        [np.ones((2, 3))],
        [np.ones((3, 2)), np.ones(1)],
        [np.full((3, 2), math.nan)],
        [np.full((3, 2), math.inf)],
    ],
    ids=['shape', 'number', 'nan', 'inf'],
)
def test_what_cannot_be_compared_is_infinitely_far(ours):
    assert relative_difference(ours, [np.ones((3, 2))]) == math.inf


@pytest.mark.parametrize('dtype', TOLERANCES)
def test_each_dtype_has_its_tolerance(dtype):
    theirs = {'maps': [np.ones(100)]}
    near = {'maps': [np.full((100,), 1 + 0.9 * TOLERANCES[dtype])]}
    far = {'maps': [np.full((100,), 1 + 1.1 * TOLERANCES[dtype])]}

    found = compare(near, theirs, dtype=dtype, names=NAMES)
    assert found['maps'] == pytest.approx(0.9 * TOLERANCES[dtype], rel=1e-2)
    with pytest.raises(DisagreementError, match='maps of package and built-in differ'):
        compare(far, theirs, dtype=dtype, names=NAMES)


def test_one_wrong_map_is_not_hidden_by_larger_ones():
    theirs = {'maps': [np.full((1000,), 1e6), np.ones(10)]}
    ours = {'maps': [theirs['maps'][0], np.ones(10) + 0.01]}
    with pytest.raises(DisagreementError):
        compare(ours, theirs, dtype='fp32', names=NAMES)


def test_gradients_are_compared_all_together():
    """A gradient that is 0 up to rounding has no meaningful difference of its own."""
    theirs = {'gradients': [np.ones(1000), np.full((10,), 1e-9)]}
    ours = {'gradients': [np.ones(1000), np.full((10,), -1e-9)]}
    assert compare(ours, theirs, dtype='fp32', names=NAMES)['gradients'] < 1e-8

    ours['gradients'][0] *= 1 + 2 * GRADIENT_FACTOR * TOLERANCES['fp32']
    with pytest.raises(DisagreementError, match='gradients'):
        compare(ours, theirs, dtype='fp32', names=NAMES)


def test_different_kinds_of_output_do_not_agree():
    with pytest.raises(DisagreementError, match='package gives maps, built-in logits'):
        compare({'maps': []}, {'logits': []}, dtype='fp32', names=NAMES)
