"""Products that stand for a convolution have the precision that is set for those."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.backends import cudnn
from torch.utils._python_dispatch import TorchDispatchMode

from mmseg_twins.ops import Axis, Strips, View, tiling
from mmseg_twins.ops.pyramid_conv import portable

module = sys.modules['mmseg_twins.ops.precision']
MATMUL = torch.backends.cuda.matmul
newer = pytest.mark.skipif(
    not module.has_fp32_precision(), reason='this PyTorch has allow_tf32 only'
)


def set_everywhere(precision: str) -> None:
    torch.backends.fp32_precision = precision
    cudnn.conv.fp32_precision = 'none'  # which inherits


def forbid_in_convolutions_alone() -> None:
    cudnn.conv.fp32_precision = 'ieee'
    MATMUL.fp32_precision = 'tf32'


def use_products_of_medium_precision() -> None:
    torch.set_float32_matmul_precision('medium')
    cudnn.allow_tf32 = False


# What a user sets, and whether convolutions use TF32 then.
OLDER = {
    'nothing': (lambda: None, True),
    'allow_tf32 off': (lambda: setattr(cudnn, 'allow_tf32', False), False),
    'allow_tf32 on for both': (lambda: setattr(MATMUL, 'allow_tf32', True), True),
    'medium': (use_products_of_medium_precision, False),
}
NEWER = {
    'conv strict': (lambda: setattr(cudnn.conv, 'fp32_precision', 'ieee'), False),
    'conv tf32': (lambda: setattr(cudnn.conv, 'fp32_precision', 'tf32'), True),
    'conv strict alone': (forbid_in_convolutions_alone, False),
    'all tf32': (lambda: set_everywhere('tf32'), True),
    'all strict': (lambda: set_everywhere('ieee'), False),
}
older = [pytest.param(*case, id=name) for name, case in OLDER.items()]
every = older + [
    pytest.param(*case, id=name, marks=newer) for name, case in NEWER.items()
]


@pytest.fixture(autouse=True)
def _settings():
    """Set what PyTorch begins with, before and after."""

    def reset():
        if module.has_fp32_precision():
            set_everywhere('none')
        torch.set_float32_matmul_precision('highest')
        cudnn.allow_tf32 = True
        if module.has_fp32_precision():
            MATMUL.fp32_precision = 'none'
            torch.backends.mkldnn.matmul.fp32_precision = 'none'

    reset()
    yield
    reset()


def settings() -> dict[str, object]:
    """All that can be read, by both of PyTorch's interfaces."""
    readers = {
        'products': lambda: MATMUL.allow_tf32,
        'convolutions': lambda: cudnn.allow_tf32,
        'precision': torch.get_float32_matmul_precision,
    }
    if module.has_fp32_precision():
        readers |= {
            'new products': lambda: MATMUL.fp32_precision,
            'new convolutions': lambda: cudnn.conv.fp32_precision,
            'all': lambda: torch.backends.fp32_precision,
            'on CPUs': lambda: torch.backends.mkldnn.matmul.fp32_precision,
        }
    found = {}
    for name, read in readers.items():
        try:
            found[name] = read()
        except RuntimeError:  # where both are mixed
            found[name] = 'unreadable'
    return found


class Watch(TorchDispatchMode):
    """Whether TF32 was allowed while each batched product ran."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ('mm', 'bmm', 'baddbmm'):
            self.seen.append(module.products_use_tf32())
        return func(*args, **(kwargs or {}))


def pyramid(dtype=torch.float32):
    maps = [torch.randn(2, 3, side, side, dtype=dtype) for side in (8, 4, 2)]
    weight = torch.randn(4, 9, 3, 3, dtype=dtype)
    return [x.requires_grad_() for x in (weight, *maps)]


def convolve(weight, *maps):
    return portable(maps, weight, None, False)


@pytest.mark.parametrize(('set_by_user', 'allowed'), every)
def test_all_products_follow_the_setting_of_convolutions(set_by_user, allowed):
    set_by_user()
    before = settings()
    inputs = pyramid()
    with Watch() as forward:
        out = convolve(*inputs)
    with Watch() as backward:
        gradients = torch.autograd.grad(out.sin().sum(), inputs, create_graph=True)
    with Watch() as twice:
        torch.autograd.grad(sum(x.sin().sum() for x in gradients), inputs)
    for watch in (forward, backward, twice):
        assert set(watch.seen) == {allowed}
    assert settings() == before


@pytest.mark.parametrize(('set_by_user', 'allowed'), older)
def test_an_older_pytorch_follows_allow_tf32(set_by_user, allowed, monkeypatch):
    set_by_user()
    names = ('products', 'convolutions', 'precision')
    before = [settings()[name] for name in names]
    with monkeypatch.context() as patch:
        patch.setattr(module, 'has_fp32_precision', lambda: False)
        with module.precision_of_convolutions():
            assert MATMUL.allow_tf32 == allowed
    assert [settings()[name] for name in names] == before


@pytest.mark.parametrize(('set_by_user', 'allowed'), every)
def test_settings_are_restored_after_an_error(set_by_user, allowed):
    set_by_user()
    before = settings()
    with pytest.raises(RuntimeError, match='bmm|shape|size|batch'):
        module.constant_product(torch.ones(1, 2, 3), torch.ones(1, 4, 5))
    assert settings() == before


def test_what_is_traced_sets_nothing(monkeypatch):
    def fail():
        raise AssertionError('a traced product changes settings')

    monkeypatch.setattr(module, 'precision_of_convolutions', fail)
    inputs = pyramid()
    with pytest.raises(AssertionError, match='changes settings'):
        convolve(*inputs)
    compiled = torch.compile(convolve, backend='aot_eager', fullgraph=True)
    compiled(*inputs).sum().backward()
    torch.func.vmap(lambda x: convolve(inputs[0], x, *inputs[2:]))(inputs[1][None])


def test_half_precision_sets_nothing():
    maps = [x.bfloat16() for x in pyramid()]
    with Watch() as watch:
        convolve(*maps)
    assert set(watch.seen) == {False}


def test_autocast_converts_what_it_converts_for_products():
    x = torch.ones(2)
    assert module.in_autocast_type(x) is x
    with torch.autocast('cpu', torch.bfloat16):
        assert module.in_autocast_type(x).dtype == torch.bfloat16
        assert module.in_autocast_type(x.double()).dtype == torch.float64
    meta = torch.ones(2, device='meta')
    assert module.in_autocast_type(meta) is meta


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_only_logits_in_half_precision_are_upsampled_in_that_of_convolutions(dtype):
    axis = Axis((0,), 32, 8, (0, 32), flip=False, size=32, align_corners=False)
    view = View(torch.randn(8, 8, 5, dtype=dtype), axis, axis)
    before = settings()
    with Watch() as watch:
        for strip in Strips([view], tiling(view.logits)).ready():
            list(strip.tiles())
    assert set(watch.seen) == {dtype != torch.float32}
    assert settings() == before
