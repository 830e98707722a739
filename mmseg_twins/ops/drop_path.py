"""Stochastic depth (arXiv 1603.09382), per sample and residual branch.

One draw serves all branches of a block, and a branch is scaled where it is added: a
kernel for the draw and one or two for each branch, where drawing, rounding, dividing,
multiplying and adding by themselves take six for each branch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Kept(NamedTuple):
    """The samples that keep a branch.

    Args:
        mask: 1 where the branch is kept and 0 where it is dropped, (B, 1, ..., 1).
        share: expected share of the samples that keep it.
    """

    mask: Tensor
    share: float


def draw_kept(x: Tensor, drop_rate: float, branches: int) -> tuple[Kept | None, ...]:
    """Draw which samples keep each of a block's branches.

    Args:
        x: what the branches are added to, (B, ...).
        drop_rate: probability with which a sample drops a branch.
        branches: their number.

    Returns:
        One for each branch; None where all are kept.
    """
    if not drop_rate:
        return (None,) * branches
    share = 1 - drop_rate
    shape = (branches, x.shape[0]) + (1,) * (x.ndim - 1)
    # Not in place, and not made from x: `vmap` draws for each sample or for all.
    masks = torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli(share)
    return tuple(Kept(mask, share) for mask in masks.unbind())


def add_branch(x: Tensor, branch: Tensor, kept: Kept | None) -> Tensor:
    """Add a residual branch where it is kept, scaled to keep its expectation.

    Args:
        x: (B, ...).
        branch: of x's shape.
        kept: of :func:`draw_kept`.

    Returns:
        ``x + branch * kept.mask / kept.share``.
    """
    if kept is None:
        return x + branch
    mask, scale = kept.mask, 1 / kept.share
    if x.dtype == branch.dtype and x.dtype.itemsize >= 4:
        return torch.addcmul(x, branch, mask, value=scale)
    # A scale in half precision would be off for every sample by the same rounding.
    return torch.add(x, branch * mask.to(branch.dtype), alpha=scale)
