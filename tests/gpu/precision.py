"""Precisions that a GPU computes in, and what each may differ by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from benchmarking.measurement import relative_difference
from torch import Tensor, nn


class Precision(NamedTuple):
    """How numbers are computed, and how far they may be from those of float64.

    Differences are relative, root mean squares. float32 rounds to 6e-8, TF32 and
    float16 to 5e-4, bfloat16 to 4e-3, and dozens of layers add up.
    """

    tolerance: float
    dtype: torch.dtype = torch.float32
    convolutions: bool = False  # use TF32
    products: bool = False  # use TF32
    autocast: torch.dtype | None = None

    @contextmanager
    def active(self, device: torch.device) -> Iterator[None]:
        """Compute with it; a fixture restores what was set before."""
        torch.backends.cudnn.allow_tf32 = self.convolutions
        torch.backends.cuda.matmul.allow_tf32 = self.products
        # Without a cache of converted weights, which CUDA graphs cannot share.
        with torch.autocast(
            device.type,
            dtype=self.autocast or torch.bfloat16,
            enabled=self.autocast is not None,
            cache_enabled=False,
        ):
            yield


PRECISIONS = {
    'float64': Precision(1e-9, torch.float64),
    'fp32': Precision(1e-5),
    'default': Precision(1e-2, convolutions=True),  # PyTorch's
    'tf32': Precision(1e-2, convolutions=True, products=True),
    'fp16': Precision(1e-2, autocast=torch.float16),
    'bf16': Precision(5e-2, autocast=torch.bfloat16),
}


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest relative difference (RMS) of pairs of tensors."""
    pairs = (
        [[x.detach().double().cpu().numpy()] for x in pair]
        for pair in zip(ours, theirs, strict=True)
    )
    return max(relative_difference(*pair) for pair in pairs)


def outputs_of(model: nn.Module, images: Tensor) -> list[Tensor]:
    """A backbone's maps, or a segmentor's logits."""
    made = model(images)  # a segmentor returns logits unless told otherwise
    return [made] if isinstance(made, Tensor) else list(made)
