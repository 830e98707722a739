"""What is said about a checkpoint that does not fit a model."""

from __future__ import annotations

import pytest
import torch

from mmseg_twins.state_dicts import compare


def state(**shapes):
    return {
        name.replace('_', '.'): torch.zeros(shape) for name, shape in shapes.items()
    }


MODEL = state(a_weight=(2, 3), b_weight=(4,))


def test_equal_names_and_shapes_are_no_difference():
    assert not compare(MODEL, dict(MODEL))


@pytest.mark.parametrize(
    ('found', 'said'),
    [
        (state(a_weight=(2, 3)), '1 tensor is missing (b.weight)'),
        ({**MODEL, **state(c_weight=(1,))}, '1 tensor is unexpected (c.weight)'),
        (
            state(a_weight=(5, 3), b_weight=(4,)),
            '1 tensor is of another shape (a.weight is 5x3 in the checkpoint and 2x3 '
            'in the model)',
        ),
        (
            state(x=(1,)),
            "none of its tensors (the first: 'x') has the name of a tensor of the "
            "model (the first: 'a.weight')",
        ),
        ({}, 'none of its tensors'),
    ],
)
def test_differences_are_named_with_their_kind(found, said):
    differences = compare(MODEL, found)
    assert differences
    assert str(differences).startswith(said)


def test_another_number_of_classes_is_the_likely_cause():
    wanted = {'h.conv_seg.weight': torch.zeros(5, 1), 'b': torch.zeros(1)}
    found = {'h.conv_seg.weight': torch.zeros(3, 1), 'b': torch.zeros(2)}
    said = str(compare(wanted, found))
    assert 'another number of classes (h.conv_seg.weight is 3x1 in the ' in said


def test_ignored_modules_may_differ():
    found = {**MODEL, **state(head_weight=(1,))}
    assert not compare(MODEL, found, ignored=['head'])
    assert not compare({**MODEL, **state(head_bias=(1,))}, MODEL, ignored=['head.bias'])
    assert compare(MODEL, found, ignored=['hea'])
