"""Cross entropy of upsampled logits, against the plain expression."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.nn import functional as F

from mmseg_twins import ops

module = sys.modules['mmseg_twins.ops.upsampled_cross_entropy']
choices = pytest.mark.parametrize('choice', ops.CHOICES)
corners = pytest.mark.parametrize('align_corners', [False, True])
# Logits and labels: several strips, a ragged last one, one pixel, shrinking.
SIZES = [
    ((16, 16), (64, 64)),
    ((23, 31), (91, 123)),
    ((1, 1), (5, 7)),
    ((9, 9), (4, 5)),
]


def case(small, large, classes=5, ignored=True):
    logits = 3 * torch.randn(2, classes, *small, dtype=torch.float64)
    labels = torch.randint(0, classes, (2, *large))
    if ignored:
        labels[:, 1::3] = 255
    return logits.requires_grad_(), labels


def plain(logits, labels, align_corners, class_weight=None):
    up = F.interpolate(
        logits, labels.shape[1:], mode='bilinear', align_corners=align_corners
    )
    loss = F.cross_entropy(
        up, labels, weight=class_weight, ignore_index=255, reduction='sum'
    )
    return loss, ((up.argmax(1) == labels) & (labels != 255)).sum()


@corners
@choices
@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize(('small', 'large'), SIZES)
def test_loss_gradient_and_hits_equal_the_plain_ones(
    small, large, weighted, align_corners, choice
):
    logits, labels = case(small, large)
    weight = torch.tensor([1.0, 2, 0, 3, 0.5]).double() if weighted else None
    with ops.use(choice):
        loss, hits = ops.upsampled_cross_entropy(
            logits, labels, align_corners=align_corners, class_weight=weight
        )
    expected, expected_hits = plain(logits, labels, align_corners, weight)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    assert hits == expected_hits
    # Scaled, as a loss weight or AMP's loss scale does.
    (got,) = torch.autograd.grad(0.4 * loss, logits)
    (want,) = torch.autograd.grad(0.4 * expected, logits)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@choices
def test_all_pixels_ignored_is_a_loss_of_zero(choice):
    logits, labels = case((4, 4), (8, 8))
    with ops.use(choice):
        loss, hits = ops.upsampled_cross_entropy(
            logits, torch.full_like(labels, 255), align_corners=False
        )
    loss.backward()
    assert (loss, hits) == (0, 0)
    assert not logits.grad.any()


@choices
@pytest.mark.parametrize('ignored', [False, True])
def test_large_logits_do_not_overflow(choice, ignored):
    logits, labels = case((4, 4), (8, 8), ignored=ignored)
    with ops.use(choice):
        loss, _ = ops.upsampled_cross_entropy(1e4 * logits, labels, align_corners=False)
    expected, _ = plain(1e4 * logits, labels, False)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    (got,), (want,) = (torch.autograd.grad(x, logits) for x in (loss, expected))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@choices
def test_float32_is_as_near_to_float64_as_the_plain_expression(choice):
    logits, labels = case((16, 16), (64, 64), classes=20)
    exact, _ = plain(logits, labels, False)
    (exact_gradient,) = torch.autograd.grad(exact, logits)
    small = logits.detach().float().requires_grad_()
    errors = []
    for function in (
        lambda: ops.upsampled_cross_entropy(small, labels, align_corners=False)[0],
        lambda: plain(small, labels, False)[0],
    ):
        with ops.use(choice):
            loss = function()
        (gradient,) = torch.autograd.grad(loss, small)
        errors.append([abs(loss - exact), (gradient - exact_gradient).norm()])
    assert errors[0][0] < 2 * errors[1][0] + 1e-6 * exact
    assert errors[0][1] < 2 * errors[1][1]


@choices
def test_bf16_logits_are_computed_with_in_float32(choice):
    logits, labels = case((16, 16), (64, 64))
    half = logits.detach().bfloat16().requires_grad_()
    with torch.autocast('cpu', torch.bfloat16), ops.use(choice):
        loss, _ = ops.upsampled_cross_entropy(half, labels, align_corners=False)
    loss.backward()
    expected, _ = plain(half.detach().double(), labels, False)
    assert (loss.dtype, half.grad.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)


@choices
def test_no_logits_are_kept_at_full_resolution(choice):
    logits, labels = case((16, 16), (128, 128))
    kept = []
    with (
        torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor
        ),
        ops.use(choice),
    ):
        ops.upsampled_cross_entropy(logits, labels, align_corners=False)
    assert max(kept) <= logits.numel() + labels.numel()


def test_a_few_images_at_a_time_give_the_loss_and_gradient_of_all(monkeypatch):
    logits, labels = case((5, 6), (11, 13))
    labels = torch.cat([labels, labels.flip(1), labels.flip(2)])
    logits = torch.cat([logits, logits.sin(), -logits]).detach().requires_grad_()

    def results():
        with ops.use('portable'):
            loss, hits = ops.upsampled_cross_entropy(logits, labels, align_corners=True)
        return loss, hits, *torch.autograd.grad(loss, logits)

    expected = results()
    monkeypatch.setattr(module, 'CHUNK', 4 * logits.shape[1] * 11 * 13 * 8)
    torch.testing.assert_close(results(), expected, rtol=1e-13, atol=1e-13)


@choices
def test_gradients_of_half_logits_are_scaled_before_they_are_rounded(choice):
    logits, labels = case((4, 4), (8, 8))
    half = logits.detach().half().requires_grad_()
    tiny = 2.0**-20  # few digits of it are left in half precision
    for x in (half, logits):
        with ops.use(choice):
            loss, _ = ops.upsampled_cross_entropy(x, labels, align_corners=False)
        (tiny / 3 * loss).backward(torch.tensor(1 / tiny, dtype=loss.dtype))
    error = (half.grad - logits.grad).norm() / logits.grad.norm()
    assert error < 2e-3
