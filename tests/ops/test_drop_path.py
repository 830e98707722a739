"""Stochastic depth per sample and branch."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmseg_twins import ops

TOKENS = (6, 3, 4, 5)


def tokens(dtype=torch.float64):
    return torch.randn(TOKENS, dtype=dtype)


def test_each_sample_keeps_or_drops_each_branch_by_itself():
    masks = [kept.mask for kept in ops.draw_kept(torch.empty(20_000, 1), 0.3, 2)]
    for mask in masks:
        assert mask.shape == (20_000, 1)
        assert set(mask.unique().tolist()) == {0, 1}
        assert mask.mean() == pytest.approx(0.7, abs=0.02)
    covariance = (masks[0] * masks[1]).mean() - masks[0].mean() * masks[1].mean()
    assert abs(covariance) < 0.01


def test_a_branch_is_added_where_it_is_kept_and_scaled():
    x, branch = tokens(), tokens()
    kept = ops.Kept(
        torch.tensor([1.0, 0, 1, 1, 0, 1]).double()[:, None, None, None], 0.7
    )
    out = ops.add_branch(x, branch, kept)
    assert torch.equal(out[[1, 4]], x[[1, 4]])
    rest = [0, 2, 3, 5]
    torch.testing.assert_close(out[rest], x[rest] + branch[rest] / 0.7)


def test_without_a_rate_all_is_kept_and_nothing_drawn():
    x, branch = tokens(), tokens()
    state = torch.get_rng_state()
    assert ops.draw_kept(x, 0.0, 2) == (None, None)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(ops.add_branch(x, branch, None), x + branch)


@pytest.mark.parametrize('dtypes', [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
])  # fmt: skip
def test_no_type_rounds_the_scale(dtypes):
    # 1 / 0.9 is 0.2 % off in bfloat16; so would be every sample and gradient.
    x, branch = (
        torch.zeros(TOKENS, dtype=dtypes[0]),
        torch.ones(TOKENS, dtype=dtypes[1]),
    )
    branch.requires_grad_()
    kept = ops.Kept(torch.ones(len(x), 1, 1, 1, dtype=dtypes[0]), 0.9)
    out = ops.add_branch(x, branch, kept)
    assert out.dtype == dtypes[0]
    nearest = torch.tensor(1 / 0.9)
    torch.testing.assert_close(
        out[0, 0, 0, 0], nearest.to(dtypes[0]), rtol=1e-7, atol=0
    )
    (gradient,) = torch.autograd.grad(out, branch, torch.ones_like(out))
    torch.testing.assert_close(
        gradient[0, 0, 0, 0], nearest.to(dtypes[1]), rtol=1e-7, atol=0
    )


def test_gradients_of_every_order_are_those_of_finite_differences():
    x, branch = tokens().requires_grad_(), tokens().requires_grad_()
    (kept,) = ops.draw_kept(x, 0.4, 1)

    def function(x, branch):
        return ops.add_branch(x, branch, kept).sin()

    assert torch.autograd.gradcheck(function, (x, branch))
    assert torch.autograd.gradgradcheck(function, (x, branch))


@pytest.mark.parametrize('randomness', ['same', 'different'])
def test_vmap_draws_for_all_or_for_each(randomness):
    def run(x):
        (kept,) = ops.draw_kept(x, 0.5, 1)
        return ops.add_branch(torch.zeros_like(x), torch.ones_like(x), kept)

    out = torch.vmap(run, randomness=randomness)(torch.zeros(50, 8, 2))
    assert set(out.unique().tolist()) == {0, 2}
    equal = all(torch.equal(out[0], other) for other in out)
    assert equal == (randomness == 'same')


def test_two_branches_take_three_kernels():
    kernels = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            kernels.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    x, branch = tokens(torch.float32), tokens(torch.float32)
    with Count():
        for kept in ops.draw_kept(x, 0.5, 2):
            x = ops.add_branch(x, branch, kept)
    without = {'empty', 'unbind'}
    kernels = [name for name in kernels if name not in without]
    assert kernels == ['bernoulli', 'addcmul', 'addcmul']
