"""Which cases there are, and where the built-in can be compared with."""

from __future__ import annotations

import pytest
import torch
from benchmarking import BenchmarkError, Case, expand
from benchmarking.cases import CHECK_SIZE, builtin_mask_is_right
from mmseg.models.backbones import twins as builtin

from builders import TINY, tiny


def test_every_combination_is_a_case():
    cases, left_out = expand(
        variants=['svt-s', 'pcpvt-l'],
        heads=['none', 'fpn'],
        modes=['inference', 'train'],
        dtypes=['fp32', 'bf16'],
        sizes=[(64, 64), (64, 96)],
        batches=[1, 4],
    )
    assert len(set(cases)) == len(cases) == 64
    assert left_out == []
    assert Case('pcpvt-l', 'fpn', 'train', 'bf16', 4, 64, 96) in cases


def test_cases_of_a_model_stand_together():
    cases, _ = expand(variants=['svt-s', 'svt-b'], heads=['none', 'fpn'])
    assert [(case.variant, case.head) for case in cases] == [
        ('svt-s', 'none'), ('svt-s', 'fpn'), ('svt-b', 'none'), ('svt-b', 'fpn'),
    ]  # fmt: skip


def test_training_takes_two_images_unless_told_otherwise():
    cases, _ = expand(variants=['svt-s'], modes=['inference', 'train'])
    assert {(case.mode, case.batch) for case in cases} == {
        ('inference', 1), ('train', 2),
    }  # fmt: skip


def test_what_makes_no_sense_is_left_out_and_said():
    cases, left_out = expand(
        variants=['svt-s'],
        heads=['none', 'uperhead'],
        modes=['logits', 'train'],
        batches=[1, 2],
    )
    assert [(case.head, case.mode, case.batch) for case in cases] == [
        ('none', 'train', 1),
        ('none', 'train', 2),
        ('uperhead', 'logits', 1),
        ('uperhead', 'logits', 2),
        ('uperhead', 'train', 2),
    ]
    assert len(left_out) == 2
    assert 'no logits' in left_out[0]
    assert 'batch of 1' in left_out[1]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(variants=['svt-x']), "variant 'svt-x' is unknown; give one of pcpvt-s"),
        (dict(heads=['mask']), "head 'mask' is unknown"),
        (dict(modes=['test']), "mode 'test' is unknown"),
        (dict(dtypes=['int8']), "dtype 'int8' is unknown"),
        (dict(sizes=[(512, 31)]), '512x31 px are too small .* at least 32 px'),
        (dict(batches=[2, 0]), 'a batch of 0 images'),
        (dict(heads=['none'], modes=['logits']), 'nothing is left to measure'),
    ],
)
def test_mistakes_are_one_sentence(arguments, message):
    with pytest.raises(BenchmarkError, match=message):
        expand(**arguments)


@pytest.mark.parametrize(
    ('height', 'width'), [(224, 224), (256, 320), (64, 96), (224, 256), (56, 64)]
)
def test_mask_is_called_right_where_the_builtin_agrees(height, width):
    ours = tiny('SVT', norm_cfg=dict(type='LN', eps=1e-5)).eval()
    theirs = builtin.SVT(**TINY, windiow_sizes=(7, 7, 7, 7)).double().eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, height, width, dtype=torch.float64)
    with torch.inference_mode():
        agree = all(
            torch.allclose(a, b) for a, b in zip(ours(x), theirs(x), strict=True)
        )
    assert builtin_mask_is_right('svt-s', height, width) == agree


def test_outputs_are_compared_at_the_cases_own_size_where_that_is_possible():
    def check_size(variant, height, width):
        return Case(variant, 'none', 'train', 'fp32', 1, height, width).check_size

    assert check_size('svt-s', 512, 512) == (512, 512)
    assert check_size('svt-s', 448, 512) == CHECK_SIZE
    assert check_size('pcpvt-s', 448, 512) == (448, 512)
    assert builtin_mask_is_right('svt-s', *CHECK_SIZE)
