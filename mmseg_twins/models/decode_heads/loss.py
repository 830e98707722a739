"""The usual loss of a decode head, fused with the upsampling of its logits."""

from __future__ import annotations

import torch
from mmseg.models.losses import CrossEntropyLoss
from torch import Tensor, nn

from ... import ops


class CrossEntropyMixin:
    """Computes the softmax cross entropy of mmsegmentation's heads at less cost.

    Loss, ``acc_seg`` and gradients are those of the head itself up to rounding. A head
    with another loss, several losses or a pixel sampler computes them as mmsegmentation
    does.

    Example:
        >>> from mmseg.models.decode_heads import FCNHead as MMSegFCNHead
        >>> class FCNHead(CrossEntropyMixin, MMSegFCNHead):
        ...     '''mmsegmentation's FCNHead, with less memory for its loss.'''
    """

    def loss_by_feat(self, seg_logits: Tensor, batch_data_samples: list) -> dict:
        """Compute the loss and the pixel accuracy.

        Args:
            seg_logits: the head's output, (B, classes, h, w).
            batch_data_samples: mmsegmentation's samples, with ``gt_sem_seg``.

        Returns:
            The loss under its name, and ``acc_seg`` in percent.
        """
        criterion = plain_cross_entropy(self)
        if criterion is None:
            return super().loss_by_feat(seg_logits, batch_data_samples)
        labels = self._stack_batch_gt(batch_data_samples).squeeze(1)
        valid = labels != self.ignore_index
        dtype = torch.promote_types(seg_logits.dtype, torch.float32)
        count = valid.sum().to(dtype)
        class_weight = criterion.class_weight
        if class_weight is not None:
            class_weight = ops.constant(class_weight, dtype, like=seg_logits)
            divisor = (class_weight[labels.where(valid, 0)] * valid).sum()
        else:
            divisor = count if criterion.avg_non_ignore else labels.numel()
        total, correct = ops.upsampled_cross_entropy(
            seg_logits,
            labels,
            align_corners=self.align_corners,
            ignore_index=self.ignore_index,
            class_weight=class_weight,
        )
        eps = torch.finfo(torch.float32).eps  # as mmsegmentation guards its divisions
        return {
            criterion.loss_name: criterion.loss_weight * total / (divisor + eps),
            'acc_seg': (100 * (correct + eps) / (count + eps)).float().reshape(1),
        }


def plain_cross_entropy(head: CrossEntropyMixin) -> CrossEntropyLoss | None:
    """Return the head's loss if it is a single cross entropy, averaged over pixels."""
    criterion = head.loss_decode
    if isinstance(criterion, nn.ModuleList):
        if len(criterion) != 1:
            return None
        criterion = criterion[0]
    is_plain = (
        head.sampler is None
        and type(criterion) is CrossEntropyLoss
        and not criterion.use_sigmoid
        and not criterion.use_mask
        and criterion.reduction == 'mean'
    )
    return criterion if is_plain else None
