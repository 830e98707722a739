"""Operations whose usual versions freeze the size that they are traced at.

Bins, paddings and windows are Python numbers by the time a tracer records them.
Where ``torch.export`` leaves a size open, the versions here compute them from it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .tracing import is_open


def pad_to_patches(x: Tensor, kernel_size: int, stride: int) -> Tensor:
    """Pad the right and bottom with zeros until patches cover the map ("corner").

    Args:
        x: (B, C, H, W).
        kernel_size: the side of a patch.
        stride: the distance of two patches.

    Returns:
        A map of which a convolution makes ceil(H / stride) by ceil(W / stride) patches.
    """
    if is_open(*x.shape[2:]):
        # Enough at any size; what does not fill a patch is left out.
        return F.pad(x, (0, kernel_size - 1, 0, kernel_size - 1))
    bottom, right = (
        max((-(-side // stride) - 1) * stride + kernel_size - side, 0)
        for side in x.shape[2:]
    )
    return F.pad(x, (0, right, 0, bottom)) if right or bottom else x


def adaptive_avg_pool(x: Tensor, output_size: int | tuple[int, int]) -> Tensor:
    """Compute ``adaptive_avg_pool2d(x, output_size)``; x is (B, C, H, W)."""
    # CUDA's kernel for the gradient is refused where results have to repeat themselves.
    must_repeat = (
        x.device.type != 'cpu' and torch.are_deterministic_algorithms_enabled()
    )
    if not is_open(*x.shape[2:]) and not must_repeat:
        return F.adaptive_avg_pool2d(x, output_size)
    if isinstance(output_size, int):
        output_size = (output_size, output_size)
    rows, columns = (
        averaging(size, bins, x)
        for size, bins in zip(x.shape[2:], output_size, strict=True)
    )
    return rows @ x @ columns.T


def averaging(size: int, bins: int, like: Tensor) -> Tensor:
    """Return the matrix of ``adaptive_avg_pool1d`` along one axis, (bins, size).

    Bin i averages the places from floor(i * size / bins) to before
    ceil((i + 1) * size / bins).
    """
    index = torch.arange(bins, device=like.device)[:, None]
    start = index * size // bins
    end = ((index + 1) * size + bins - 1) // bins
    place = torch.arange(size, device=like.device)
    inside = (place >= start) & (place < end)
    return inside.to(like.dtype) / (end - start).to(like.dtype)
