r"""Cross entropy of upsampled logits, without holding them at full resolution.

A decode head's logits, at 1/4 of the image's resolution, are upsampled to the
labels before the loss. Done plainly, the upsampled logits, their log-softmax and the
gradients of both live at full resolution: four tensors of B * 150 * 512 * 512
numbers for a head on ADE20K crops. Here the labels are gone through in strips of
rows, and only tensors of the logits' own size outlive a strip.

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
from torch.autograd.function import once_differentiable

from .pyramid_conv import interpolation

STRIP_ROWS = 32


@functools.lru_cache(maxsize=64)
def strips(
    size_in: int,
    size_out: int,
    align_corners: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> list[tuple[slice, slice, Tensor]]:
    """Strips of output rows, the input rows that each needs, and how it mixes them.

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
    def forward(ctx, logits, labels, weights, align_corners):
        b, classes, h, w = logits.shape
        height, width = labels.shape[1:]
        dtype = torch.promote_types(logits.dtype, torch.float32)
        x = logits.permute(0, 2, 3, 1).to(dtype)  # (B, h, w, classes)
        columns = interpolation(w, width, align_corners, dtype, x.device)
        needs_gradient = ctx.needs_input_grad[0]
        gradient = torch.zeros_like(x) if needs_gradient else None
        loss, correct = x.new_zeros(()), labels.new_zeros(())
        for outputs, inputs, rows in strips(h, height, align_corners, dtype, x.device):
            slab = torch.matmul(columns, x[:, inputs])  # (B, rows in, W, classes)
            up = torch.matmul(rows, slab.flatten(2)).view(b, -1, width, classes)
            label, weight = labels[:, outputs, :, None], weights[:, outputs, :, None]
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
            ctx.save_for_backward(gradient.permute(0, 3, 1, 2).to(logits.dtype))
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    @once_differentiable
    def backward(ctx, loss_gradient, _):
        (gradient,) = ctx.saved_tensors
        return gradient * loss_gradient.to(gradient.dtype), None, None, None


@torch.compiler.disable
def upsampled_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    align_corners: bool,
    ignore_index: int = 255,
    class_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross entropy of bilinearly upsampled logits, summed over pixels.

    Args:
        logits: (B, classes, h, w), of any floating type; bf16 and half logits are
            computed with in float32.
        labels: (B, H, W), integers.
        align_corners: as in ``torch.nn.functional.interpolate``.
        ignore_index: the label of pixels that do not count.
        class_weight: (classes,), or None for 1.

    Returns:
        The sum over pixels of the weighted cross entropy, and the number of pixels
        that are classified right; ignored pixels count in neither.
    """
    valid = labels != ignore_index
    safe = labels.where(valid, 0)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    if class_weight is None:
        weights = valid.to(dtype)
    else:
        weights = class_weight.to(dtype)[safe]
    # A negative weight marks an ignored pixel: a class may have weight 0 and count.
    weights = weights.where(valid, -1)
    with torch.autocast(logits.device.type, enabled=False):
        return _UpsampledCrossEntropy.apply(logits, safe, weights, align_corners)
