r"""Cross entropy of upsampled logits, without holding them at full resolution.

A decode head's logits, at 1/4 of the image's resolution, are upsampled to the labels
before the loss. In the plain expression, the upsampled logits, their log-softmax and
the gradients of both live at full resolution: four tensors of B * 150 * 512 * 512
numbers for a head on ADE20K crops, which are read or written nine times. The
versions here compute the gradient along with the loss, so that only tensors of the
logits' own size outlive the forward pass. The portable one takes a few images at a
time, and five readings or writings; the CPU version goes through the labels in strips
of rows that stay in the cache.

Derivation. With ``up`` the bilinear upsampling of a class's map, a matrix product
for each axis, ``up(x) = U x V'``, the loss is a sum over output pixels p::

    loss = sum over p of weight[p] * (logsumexp(up(x)[p]) - up(x)[p, label[p]])

so that strips of rows add up. A strip needs the rows of U that belong to it, and of x
the few rows that these rows of U touch. Its gradient with respect to ``up(x)`` is
``weight[p] * (softmax(up(x)[p]) - onehot(label[p]))``, and the gradient with respect
to x is ``U' gradient V``, a sum over the strips again. The loss is a scalar: this
gradient, computed along with it, only needs scaling in the backward pass.

In the portable version, one more class takes all of the probability of the ignored
pixels. Their softmax is 0 for the true classes, which saves weighting it. As the most
probable class has a probability of 1 / classes at least, it gives the logarithm of the
sum accurately::

    logsumexp(up(x)[p]) = max(up(x)[p]) - log(max(softmax(up(x)[p])))
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from .differentiation import differentiable_gradients
from .interpolation import interpolation
from .tracing import is_traced

STRIP_ROWS = 32
# Bytes of upsampled logits that the portable version has at once, in whole images.
CHUNK = 2**30


def plain(
    logits: Tensor,
    labels: Tensor,
    align_corners: bool,
    ignore_index: int,
    class_weight: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Compute the loss at full resolution.

    The arguments are those of :func:`mmseg_twins.ops.upsampled_cross_entropy`.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    up = F.interpolate(
        logits.to(dtype), labels.shape[1:], mode='bilinear', align_corners=align_corners
    )
    correct = ((up.argmax(1) == labels) & (labels != ignore_index)).sum()
    loss = F.cross_entropy(
        up, labels, class_weight, ignore_index=ignore_index, reduction='sum'
    )
    return loss, correct


def portable(
    logits: Tensor,
    labels: Tensor,
    align_corners: bool,
    ignore_index: int,
    class_weight: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Compute :func:`plain`, in eager mode along with its gradient."""
    arguments = (logits, labels, align_corners, ignore_index, class_weight)
    if is_traced() or not (logits.requires_grad and torch.is_grad_enabled()):
        return plain(*arguments)
    return _WithGradient.apply(*arguments)


class _KeptGradient(torch.autograd.Function):
    """Scales the gradient that a forward pass keeps as ``saved_tensors[0]``."""

    @staticmethod
    def backward(ctx, loss_gradient, _):
        gradient, logits, labels, class_weight = ctx.saved_tensors
        if not torch.is_grad_enabled():
            scaled = (gradient * loss_gradient).to(logits.dtype)
            return scaled, None, None, None, None
        align_corners, ignore_index = ctx.options

        def loss(x: Tensor) -> Tensor:
            return plain(x, labels, align_corners, ignore_index, class_weight)[0]

        gradients = differentiable_gradients(loss, (logits,), loss_gradient)
        return *gradients, None, None, None, None


class _WithGradient(_KeptGradient):
    @staticmethod
    def forward(ctx, logits, labels, align_corners, ignore_index, class_weight):
        dtype = torch.promote_types(logits.dtype, torch.float32)
        pixels = labels.shape[1:].numel()
        images = max(CHUNK // (logits.shape[1] * pixels * dtype.itemsize), 1)
        parts = zip(logits.to(dtype).split(images), labels.split(images), strict=True)
        options = align_corners, ignore_index
        losses, hits, gradients = zip(
            *(loss_with_gradient(*part, *options, class_weight) for part in parts),
            strict=True,
        )
        loss, correct = sum(losses[1:], losses[0]), sum(hits[1:], hits[0])
        gradient = gradients[0] if len(gradients) == 1 else torch.cat(gradients)
        ctx.save_for_backward(gradient, logits, labels, class_weight)
        ctx.options = options
        ctx.mark_non_differentiable(correct)
        return loss, correct


def loss_with_gradient(
    logits: Tensor,
    labels: Tensor,
    align_corners: bool,
    ignore_index: int,
    class_weight: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute :func:`plain` and the gradient of the loss, outside autograd."""
    x = F.pad(logits, (0, 0, 0, 0, 0, 1))  # the class of ignored pixels
    with torch.enable_grad():
        up = F.interpolate(
            x.requires_grad_(),
            labels.shape[1:],
            mode='bilinear',
            align_corners=align_corners,
        )
    labels = labels[:, None]  # (B, 1, H, W), as all that has one number a pixel
    valid = labels != ignore_index
    safe = labels.where(valid, 0)
    classes = up.detach()[:, :-1]
    maximum, best = classes.max(1, keepdim=True)
    target = classes.gather(1, safe)
    limits = torch.finfo(torch.float32)
    up.detach()[:, -1:] = torch.where(valid, limits.min, limits.max)
    probability = up.softmax(1)
    losses = maximum - probability.gather(1, best).log() - target
    onehot = valid.to(up.dtype)
    if class_weight is not None:
        weight = class_weight[safe]
        losses, onehot = losses * weight, onehot * weight
        probability *= weight
    gradient = probability.scatter_add_(1, safe, -onehot)
    (gradient,) = torch.autograd.grad(up, x, gradient)
    correct = ((best == labels) & valid).sum()
    return losses.where(valid, 0).sum(), correct, gradient[:, :-1]


def on_cpu(
    logits: Tensor,
    labels: Tensor,
    align_corners: bool,
    ignore_index: int,
    class_weight: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Compute the loss strip by strip, in eager mode on a CPU.

    The arguments are those of :func:`mmseg_twins.ops.upsampled_cross_entropy`.
    """
    with torch.autocast('cpu', enabled=False):
        return _UpsampledCrossEntropy.apply(
            logits, labels, align_corners, ignore_index, class_weight
        )


@functools.lru_cache(maxsize=64)
def strips(
    size_in: int,
    size_out: int,
    align_corners: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> list[tuple[slice, slice, Tensor]]:
    """Return strips of output rows, the input rows of each, and how it mixes them.

    Returns:
        (output rows, input rows, their part of the interpolation matrix) for each.
    """
    matrix = interpolation(size_in, size_out, align_corners, dtype, device)
    result = []
    for start in range(0, size_out, STRIP_ROWS):
        outputs = slice(start, min(start + STRIP_ROWS, size_out))
        touched = matrix[outputs].any(dim=0).nonzero().flatten()
        inputs = slice(int(touched[0]), int(touched[-1]) + 1)
        result.append((outputs, inputs, matrix[outputs, inputs].contiguous()))
    return result


class _UpsampledCrossEntropy(_KeptGradient):
    @staticmethod
    def forward(ctx, logits, labels, align_corners, ignore_index, class_weight):
        b, classes, h, w = logits.shape
        height, width = labels.shape[1:]
        dtype = torch.promote_types(logits.dtype, torch.float32)
        valid = labels != ignore_index
        safe = labels.where(valid, 0)
        weights = valid.to(dtype) if class_weight is None else class_weight[safe]
        # A negative weight marks an ignored pixel: a class may have weight 0 and count.
        weights = weights.to(dtype).where(valid, -1)
        x = logits.permute(0, 2, 3, 1).to(dtype)  # (B, h, w, classes)
        columns = interpolation(w, width, align_corners, dtype, x.device)
        needs_gradient = ctx.needs_input_grad[0]
        gradient = torch.zeros_like(x) if needs_gradient else None
        loss, correct = x.new_zeros(()), labels.new_zeros(())
        for outputs, inputs, rows in strips(h, height, align_corners, dtype, x.device):
            slab = torch.matmul(columns, x[:, inputs])  # (B, rows in, W, classes)
            up = torch.matmul(rows, slab.flatten(2)).view(b, -1, width, classes)
            label, weight = safe[:, outputs, :, None], weights[:, outputs, :, None]
            target = up.gather(3, label)
            correct += ((up.argmax(3, keepdim=True) == label) & (weight >= 0)).sum()
            weight = weight.clamp(min=0)
            maximum = up.amax(3, keepdim=True)
            up = up.sub_(maximum).exp_()
            total = up.sum(3, keepdim=True)
            loss += ((total.log() + maximum - target) * weight).sum()
            if needs_gradient:
                up = up.mul_(weight / total)
                up.scatter_add_(3, label, -weight)
                slab = torch.matmul(rows.T, up.flatten(2)).view(slab.shape)
                gradient[:, inputs] += torch.matmul(columns.T, slab)
        if needs_gradient:
            gradient = gradient.permute(0, 3, 1, 2)
            ctx.save_for_backward(gradient, logits, labels, class_weight)
            ctx.options = align_corners, ignore_index
        ctx.mark_non_differentiable(correct)
        return loss, correct
