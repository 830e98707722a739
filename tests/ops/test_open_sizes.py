"""Operations whose sizes stay open, against PyTorch's at fixed sizes."""

from __future__ import annotations

import pytest
import torch
from torch.export import Dim
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mmseg_twins import ops
from mmseg_twins.ops.open_sizes import averaging


@pytest.mark.parametrize('bins', [1, 2, 3, 6])
@pytest.mark.parametrize('size', [1, 2, 5, 6, 13])
def test_averaging_is_adaptive_pooling(size, bins):
    x = torch.randn(1, 1, size, dtype=torch.float64)
    expected = F.adaptive_avg_pool1d(x, bins)[0, 0]
    torch.testing.assert_close(averaging(size, bins, x) @ x[0, 0], expected)


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.parametrize(
    'function',
    [
        lambda x: ops.adaptive_avg_pool(x, 3),
        lambda x: ops.adaptive_avg_pool(x, (2, 1)),
        lambda x: F.avg_pool2d(ops.pad_to_patches(x, 3, 2), 3, 2),
    ],
    ids=['pool', 'pool to unequal sides', 'pad'],
)
def test_exported_with_open_sizes_it_is_right_at_others(function):
    class Module(torch.nn.Module):
        def forward(self, x):
            return function(x)

    x = torch.randn(2, 1, 12, 17)
    shapes = {'x': {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
    program = torch.export.export(Module(), (x,), dynamic_shapes=shapes)
    exported = program.module(check_guards=False)
    for size in [(12, 17), (7, 5), (30, 8)]:
        x = torch.randn(2, 1, *size)
        torch.testing.assert_close(exported(x), function(x))


@pytest.mark.parametrize('deterministic', [False, True])
def test_pooling_on_accelerators_repeats_itself_where_it_has_to(deterministic):
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    x = torch.ones(1, 2, 7, 5, device='meta')
    torch.use_deterministic_algorithms(deterministic)
    try:
        with Watch():
            assert ops.adaptive_avg_pool(x, 3).shape == (1, 2, 3, 3)
    finally:
        torch.use_deterministic_algorithms(False)
    assert ('_adaptive_avg_pool2d' in seen) != deterministic
