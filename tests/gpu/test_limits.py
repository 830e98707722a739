"""Sizes at which CUDA's attention kernels end, and this package does not."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from benchmarking.models import PACKAGE
from torch import Tensor

from gpu.precision import difference, outputs_of
from mmseg_twins import ops
from mmseg_twins.models.backbones.attention import LSA

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings('ignore')]
attention = sys.modules['mmseg_twins.ops.attention']
TOLERANCES = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
PART = 10_000  # samples that are compared at a time


@pytest.fixture(autouse=True)
def _low_limit_in_a_rehearsal(device, monkeypatch):
    if device.type == 'cpu':
        monkeypatch.setattr(attention, 'MAX_HEADS', 655)
        monkeypatch.setattr(ops, '_is_on_accelerator', lambda x: True)
        monkeypatch.setattr(ops, '_may_use_cpu_version', lambda *tensors: False)


def with_gradients(function: Callable, *tensors: Tensor) -> list[Tensor]:
    """A result and the gradients of the inputs, for that of the result, given last."""
    *inputs, direction = tensors
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, direction)]


@pytest.mark.parametrize('dtype', TOLERANCES, ids=str)
@pytest.mark.parametrize(
    ('samples', 'heads', 'queries', 'keys'),
    [
        pytest.param(70_000, 1, 49, 49, id='windows'),
        pytest.param(36_000, 2, 49, 49, id='windows and heads'),
        pytest.param(9_000, 8, 16, 4, id='images and heads'),
        pytest.param(140_000, 1, 1, 1, id='corners'),
    ],
)
def test_any_number_of_samples_is_attended_to(
    device, samples, heads, queries, keys, dtype
):
    torch.backends.cuda.matmul.allow_tf32 = False
    if device.type == 'cpu':
        samples //= 100
    tensors = [
        torch.randn(samples, heads, length, 32, device=device, dtype=dtype)
        for length in (queries, keys, keys, queries)
    ]
    found = with_gradients(ops.attention, *tensors)
    parts = [
        with_gradients(attention.plain, *(x.double() for x in part))
        for part in zip(*(x.split(PART) for x in tensors), strict=True)
    ]
    for number, mine in enumerate(found):
        if number and keys == 1:
            continue  # a softmax of one number has no gradient but rounding
        expected = torch.cat([part[number] for part in parts])
        assert difference([mine], [expected]) < TOLERANCES[dtype]


@pytest.mark.parametrize(
    ('batch', 'height', 'width'),
    [
        pytest.param(256, 128, 128, id='256 images of 512x512'),
        pytest.param(7, 512, 1024, id='7 images of 2048x4096'),
        pytest.param(1, 2500, 2500, id='10000x10000'),
    ],
)
def test_windows_of_large_maps_attend_as_those_of_small_ones(
    device, batch, height, width
):
    torch.backends.cuda.matmul.allow_tf32 = False
    if device.type == 'cpu':
        batch, height, width = min(batch, 4), height // 6, width // 6
    attend = LSA(64, 2, 7).to(device)
    tokens = torch.randn(batch, height, width, 64, device=device)
    with torch.no_grad():
        found = attend(tokens)
        attend.double()
        for image in (0, batch - 1):
            for rows in (slice(35), slice((height // 7 - 2) * 7, None)):
                for columns in (slice(35), slice((width // 7 - 2) * 7, None)):
                    part = image, rows, columns
                    expected = attend(tokens[part][None].double())[0]
                    assert difference([found[part]], [expected]) < 1e-5


def test_an_image_of_10000x10000_goes_through_a_backbone(device, start, case):
    if device.type == 'cuda' and torch.cuda.mem_get_info()[1] < 70e9:
        pytest.skip('needs a GPU of 80 GB')
    side = 10_000 if device.type == 'cuda' else 1280
    small = case('svt-s', 'none', 'inference', 'bf16', batch=1)
    session = start(PACKAGE, small)
    images = torch.randn(1, 3, side, side, device=device)
    with torch.no_grad(), session.autocast():
        maps = outputs_of(session.model, images)
    assert [x.shape[2] for x in maps] == [side // d for d in (4, 8)] + [
        -(-side // d) for d in (16, 32)
    ]
    assert all(bool(x.isfinite().all()) for x in maps)
