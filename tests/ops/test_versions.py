"""What holds for every operation: versions agree, and derivatives of any kind."""

from __future__ import annotations

import sys
import threading

import pytest
import torch
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from mmseg_twins import ops
from mmseg_twins.errors import SettingError

attention, conv3x3, mlp = (
    sys.modules[f'mmseg_twins.ops.{name}'] for name in ('attention', 'conv3x3', 'mlp')
)


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


LABELS = torch.arange(2 * 5 * 6).view(2, 5, 6) % 4
LABELS[:, 2] = 255


def cross_entropy(logits):
    return ops.upsampled_cross_entropy(logits, LABELS, align_corners=False)[0]


def window_attention(x):
    tokens, windows = ops.to_windows(x, 2)
    out = ops.window_attention(tokens, windows, num_heads=1)
    return ops.from_windows(out, windows)


def attend(q, k, v):
    return ops.attention(q, k, v)


def attend_in_chunks(q, k, v):
    return attention.in_chunks(q, k, v, 0.0)


def pool(x):
    return ops.adaptive_avg_pool(x, 2)


def pad(x):
    return ops.pad_to_patches(x, kernel_size=2, stride=2)


def contiguous_gradient(x):
    return ops.contiguous_gradient(2 * x)


def pyramid(x, y, z, weight, bias):
    return ops.pyramid_conv3x3([x, y, z], weight, bias, False)


CASES = {
    'attention': (attend, [(2, 2, 5, 4), (2, 2, 3, 4), (2, 2, 3, 4)]),
    'attention in chunks': (
        attend_in_chunks,
        [(2, 2, 5, 4), (2, 2, 3, 4), (2, 2, 3, 4)],
    ),
    'window_attention': (window_attention, [(2, 3, 5, 6)]),
    'mlp': (ops.mlp, [(2, 3, 3), (5, 3), (5,), (3, 5), (3,)]),
    'conv3x3': (ops.conv3x3, [(2, 2, 5, 4), (3, 2, 3, 3), (3,)]),
    'pyramid_conv3x3': (
        pyramid,
        [(2, 2, 4, 5), (2, 1, 2, 3), (2, 1, 1, 1), (3, 4, 3, 3), (3,)],
    ),
    'upsampled_cross_entropy': (cross_entropy, [(2, 4, 2, 3)]),
    'adaptive_avg_pool': (pool, [(2, 2, 5, 3)]),
    'pad_to_patches': (pad, [(2, 1, 3, 5)]),
    'contiguous_gradient': (contiguous_gradient, [(2, 3)]),
}
every = pytest.mark.parametrize('name', CASES)
choices = pytest.mark.parametrize('choice', ops.CHOICES)


def case(name):
    torch.manual_seed(0)
    function, shapes = CASES[name]
    return function, [random(*shape).requires_grad_() for shape in shapes]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """CPU versions at any size, in several chunks or strips."""
    monkeypatch.setattr(mlp, 'CHUNKED_FROM', 0)
    monkeypatch.setattr(mlp, 'rows_of_chunk', lambda w1: 4)
    monkeypatch.setattr(conv3x3, 'MIN_CHANNELS', 1)
    monkeypatch.setattr(conv3x3, 'MIN_PIXELS', 1)
    monkeypatch.setattr(attention, 'SMALL_ATTENTION', 0)
    monkeypatch.setattr(attention, 'MAX_HEADS', 2)
    monkeypatch.setattr(attention, 'rows_of_chunk', lambda k: 2)
    monkeypatch.setattr(attention, 'is_faster_on_cpu', lambda q, k, rate: not rate)


@every
def test_both_versions_agree_in_float64(name):
    function, inputs = case(name)
    results = []
    for choice in ops.CHOICES:
        with ops.use(choice):
            out = function(*inputs)
        results.append([out, *torch.autograd.grad(out.sin().sum(), inputs)])
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=1e-11, atol=1e-12)


@choices
@every
def test_gradients_are_those_of_finite_differences(name, choice):
    function, inputs = case(name)
    with ops.use(choice):
        assert torch.autograd.gradcheck(function, inputs)


@choices
@every
def test_second_derivatives_are_those_of_finite_differences(name, choice):
    function, inputs = case(name)
    with ops.use(choice):
        assert torch.autograd.gradgradcheck(
            lambda *inputs: function(*inputs).sin(), inputs, atol=1e-4
        )


@pytest.mark.parametrize('name', ['attention', 'mlp', 'pyramid_conv3x3'])
def test_second_derivatives_are_right_where_inputs_depend_on_each_other(name):
    function, inputs = case(name)

    def chained(*inputs):
        first = inputs[0].sin()
        return function(first, *(x * first.sum() for x in inputs[1:])).sin()

    assert torch.autograd.gradgradcheck(chained, inputs, atol=1e-4)


@every
def test_transforms_of_torch_func_give_the_gradients_and_hessians_of_autograd(name):
    function, inputs = case(name)
    values = tuple(x.detach() for x in inputs)

    def loss(*inputs):
        return function(*inputs).sin().sum()

    expected = torch.autograd.grad(loss(*inputs), inputs)
    got = torch.func.grad(loss, argnums=tuple(range(len(values))))(*values)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)

    vector = torch.ones_like(values[0])
    got = torch.func.jvp(
        torch.func.grad(lambda x: loss(x, *values[1:])), (values[0],), (vector,)
    )[1]
    expected = torch.autograd.functional.hvp(
        lambda x: loss(x, *values[1:]), values[0], vector
    )[1]
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


@every
def test_forward_mode_gives_the_derivatives_of_backward_mode(name):
    function, (x, *rest) = case(name)
    direction = torch.ones_like(x)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.detach(), direction)
        got = forward_ad.unpack_dual(function(dual, *rest)).tangent
    expected = torch.autograd.functional.jvp(
        lambda x: function(x, *rest), x.detach(), direction
    )[1]
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize('name', ['attention', 'window_attention', 'mlp', 'conv3x3'])
def test_vmap_gives_per_sample_gradients(name):
    function, (x, *rest) = case(name)
    if name == 'attention':
        rest = [value[:1] for value in rest]

    def loss(x):
        return function(x[None], *(value.detach() for value in rest)).sin().sum()

    got = torch.func.vmap(torch.func.grad(loss))(x.detach())
    expected = torch.stack([torch.func.grad(loss)(sample) for sample in x.detach()])
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)


@every
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_a_trace_recorded_with_gradients_repeats_the_function(name):
    function, inputs = case(name)
    traced = torch.jit.trace(function, tuple(inputs))
    torch.testing.assert_close(traced(*inputs), function(*inputs))


@every
def test_make_fx_and_compile_repeat_the_function(name):
    function, inputs = case(name)
    expected = function(*inputs)
    expected_gradients = torch.autograd.grad(expected.sin().sum(), inputs)
    recorded = make_fx(function)(*inputs)
    torch.testing.assert_close(recorded(*inputs), expected, rtol=1e-11, atol=1e-12)
    out = torch.compile(function, backend='aot_eager', fullgraph=True)(*inputs)
    got = [out, *torch.autograd.grad(out.sin().sum(), inputs)]
    torch.testing.assert_close(
        got, [expected, *expected_gradients], rtol=1e-11, atol=1e-12
    )


def test_the_choice_ends_with_its_block_and_is_this_threads():
    x, weight = random(1, 1, 4, 4), random(1, 1, 3, 3).requires_grad_()

    def version():
        return type(ops.conv3x3(x, weight).grad_fn).__name__

    seen = []
    with ops.use('portable'):
        seen.append(version())
        with ops.use('auto'):
            seen.append(version())
        thread = threading.Thread(target=lambda: seen.append(version()))
        thread.start()
        thread.join()
    seen.append(version())
    winograd = ['Winograd' in name for name in seen]
    assert winograd == [False, True, True, True]


def test_an_unknown_choice_is_refused():
    with (
        pytest.raises(SettingError, match="'gpu'; give one of auto, portable"),
        ops.use('gpu'),
    ):
        pass
