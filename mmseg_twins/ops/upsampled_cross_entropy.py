r"""Cross entropy of upsampled logits, without holding them at full resolution.

A decode head's logits, at 1/4 of the image's resolution, are upsampled to the labels
before the loss. In the portable version, the upsampled logits, their log-softmax and
the gradients of both live at full resolution: four tensors of B * 150 * 512 * 512
numbers for a head on ADE20K crops. The CPU version goes through the labels in strips
of rows, and only tensors of the logits' own size outlive a strip.

Derivation. With ``up`` the bilinear upsampling of a class's map, a matrix product
for each axis, ``up(x) = U x V'``, the loss is a sum over output pixels p::

    loss = sum over p of weight[p] * (logsumexp(up(x)[p]) - up(x)[p, label[p]])

so that strips of rows add up. A strip needs the rows of U that belong to it, and of x
the few rows that these rows of U touch. Its gradient with respect to ``up(x)`` is
``weight[p] * (softmax(up(x)[p]) - onehot(label[p]))``, and the gradient with respect
to x is ``U' gradient V``, a sum over the strips again. The loss is a scalar: this
gradient, computed along with it, only needs scaling in the backward pass.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from .differentiation import differentiable_gradients
from .interpolation import interpolation

STRIP_ROWS = 32


def portable(
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


class _UpsampledCrossEntropy(torch.autograd.Function):
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
            gradient = gradient.permute(0, 3, 1, 2).to(logits.dtype)
            ctx.save_for_backward(gradient, logits, labels, class_weight)
            ctx.options = align_corners, ignore_index
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx, loss_gradient, _):
        gradient, logits, labels, class_weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            (gradient,) = differentiable_gradients(
                lambda x: portable(x, labels, *ctx.options, class_weight)[0],
                (logits,),
                loss_gradient,
            )
        else:
            gradient = gradient * loss_gradient.to(gradient.dtype)
        return gradient, None, None, None, None
