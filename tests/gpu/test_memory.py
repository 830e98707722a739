"""Peaks of a GPU's memory, beside the built-in's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from benchmarking.models import BUILTIN, PACKAGE

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings('ignore')]
VARIANTS = ('pcpvt-s', 'svt-s')


@pytest.fixture
def peak(start, device) -> Callable[..., int]:
    """The bytes that a session's step takes above those of model and images."""

    def measure(implementation, case) -> int:
        session = start(implementation, case)
        session.step()
        if device.type != 'cuda':
            return 0
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        session.step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    return measure


@pytest.fixture
def judge(device) -> Callable[[bool], None]:
    def judge(holds: bool) -> None:
        if device.type != 'cuda':
            pytest.skip('a rehearsal measures no memory of a GPU')
        assert holds

    return judge


@pytest.mark.parametrize('dtype', ['fp32', 'bf16'])
@pytest.mark.parametrize('mode', ['inference', 'train'])
@pytest.mark.parametrize('head', ['none', 'uperhead', 'fpn'])
@pytest.mark.parametrize('variant', VARIANTS)
def test_a_step_takes_less_than_the_builtins(
    case, peak, judge, variant, head, mode, dtype
):
    one = case(variant, head, mode, dtype, size=(512, 512))
    ours, theirs = (peak(name, one) for name in (PACKAGE, BUILTIN))
    judge(ours < theirs)


def test_sliding_windows_take_less_than_half_of_the_builtins(case, peak, judge):
    one = case('svt-s', 'uperhead', 'slide', 'fp32', batch=1, size=(2080, 2080))
    ours, theirs = (peak(name, one) for name in (PACKAGE, BUILTIN))
    judge(ours < theirs / 2)


def test_sliding_windows_take_no_more_for_a_higher_image(case, peak, judge):
    sizes = [(rows, 2080) for rows in (2080, 6240)]
    cases = [
        case('svt-s', 'fpn', 'slide', 'fp32', batch=1, size=size) for size in sizes
    ]
    low, high = (peak(PACKAGE, one) for one in cases)
    labels = 8 * (cases[1].height - cases[0].height) * cases[0].width  # bytes
    judge(high - low < 2 * labels)
