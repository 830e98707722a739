"""What is measured: a case is one model, one kind of step, one size of its input."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarking.errors import BenchmarkError
from mmseg_twins.checkpoints.models import ARCHS, FAMILIES, VARIANTS

HEADS = {
    'none': 'the backbone alone',
    'uperhead': 'UPerNet with its auxiliary head',
    'fpn': 'Semantic FPN',
}
MODES = {
    'inference': 'image to feature maps (backbone), or to the class of each pixel',
    'logits': "a segmentor's network alone, to logits at 1/4 of the image's size",
    'train': 'forward and backward (backbone), or a whole training step',
}
DTYPES = {
    'fp32': 'no autocast',
    'bf16': 'autocast to bfloat16',
    'fp16': 'autocast to float16, on a GPU',
}
# Sides that the built-in's padding mask is right for, and of moderate size.
CHECK_SIZE = (256, 320)


@dataclass(frozen=True)
class Case:
    """One thing that is measured for every implementation.

    Attributes:
        variant: the backbone, such as ``'svt-s'``.
        head: one of ``HEADS``.
        mode: one of ``MODES``.
        dtype: one of ``DTYPES``.
        batch: images that go through at once.
        height: of the images, in pixels.
        width: of the images, in pixels.
    """

    variant: str
    head: str
    mode: str
    dtype: str
    batch: int
    height: int
    width: int

    @property
    def title(self) -> str:
        """Everything in a line, such as ``svt-s inference fp32, 1 x 512x512``."""
        head = '' if self.head == 'none' else f' {self.head}'
        return (
            f'{self.variant}{head} {self.mode} {self.dtype}, '
            f'{self.batch} x {self.height}x{self.width}'
        )

    @property
    def check_size(self) -> tuple[int, int]:
        """Height and width at which outputs are compared.

        The case's own, unless the built-in attends to padding there.
        """
        if builtin_mask_is_right(self.variant, self.height, self.width):
            return self.height, self.width
        return CHECK_SIZE

    def at_check_size(self) -> Case:
        """The same case with images of :attr:`check_size`."""
        height, width = self.check_size
        return replace(self, height=height, width=width)


def min_image_side(variant: str) -> int:
    """Smallest side in pixels of the images that a variant takes."""
    family, size = variant.split('-')
    row = FAMILIES[family].size_table[ARCHS[size]]
    halvings = (4, *[2] * (row.num_stages - 1))
    return replace(row, strides=halvings).min_image_side


def builtin_mask_is_right(variant: str, height: int, width: int) -> bool:
    """Whether mmsegmentation's SVT leaves padding out at an image size.

    Its mask is wrong in a stage whose map has to be padded to whole windows on one
    side only; then it attends to the padding.

    Args:
        variant: the backbone; a PCPVT has no windows and is right at every size.
        height: of the image, in pixels.
        width: of the image, in pixels.
    """
    family, size = variant.split('-')
    windows = FAMILIES[family].size_table[ARCHS[size]].window_sizes
    for stage, window in enumerate(windows or ()):
        rows, columns = (-(-side // 2 ** (stage + 2)) for side in (height, width))
        if (rows % window == 0) != (columns % window == 0):
            return False
    return True


def expand(
    *,
    variants: Sequence[str] = ('pcpvt-s', 'svt-s'),
    heads: Sequence[str] = ('none', 'uperhead'),
    modes: Sequence[str] = ('inference',),
    dtypes: Sequence[str] = ('fp32',),
    sizes: Sequence[tuple[int, int]] = ((512, 512),),
    batches: Sequence[int] | None = None,
) -> tuple[list[Case], list[str]]:
    """Every combination of what is asked for that makes sense.

    Args:
        variants: backbones.
        heads: of ``HEADS``.
        modes: of ``MODES``.
        dtypes: of ``DTYPES``.
        sizes: (height, width) of the images in pixels.
        batches: batch sizes; None for 1, and 2 in training.

    Returns:
        The cases, and a sentence for each kind of combination that was left out.

    Raises:
        BenchmarkError: a value is unknown, an image too small, or nothing is left.
    """
    for name, values, allowed in (
        ('variant', variants, VARIANTS),
        ('head', heads, HEADS),
        ('mode', modes, MODES),
        ('dtype', dtypes, DTYPES),
    ):
        for value in values:
            if value not in allowed:
                raise BenchmarkError(
                    f'{name} {value!r} is unknown; give one of {", ".join(allowed)}'
                )
    for variant, (height, width) in itertools.product(variants, sizes):
        smallest = min_image_side(variant)
        if min(height, width) < smallest:
            raise BenchmarkError(
                f'images of {height}x{width} px are too small for {variant}; both '
                f'sides need at least {smallest} px'
            )
    if batches is not None and min(batches) < 1:
        raise BenchmarkError(f'a batch of {min(batches)} images; give 1 or more')
    cases, left_out = [], {}
    for variant, head, mode, dtype, (height, width) in itertools.product(
        dict.fromkeys(variants),
        dict.fromkeys(heads),
        dict.fromkeys(modes),
        dict.fromkeys(dtypes),
        dict.fromkeys(sizes),
    ):
        for batch in dict.fromkeys(batches or [2 if mode == 'train' else 1]):
            case = Case(variant, head, mode, dtype, batch, height, width)
            reason = reason_to_leave_out(case)
            if reason:
                left_out[reason] = None
            else:
                cases.append(case)
    if not cases:
        raise BenchmarkError(f'nothing is left to measure: {"; ".join(left_out)}')
    return cases, list(left_out)


def reason_to_leave_out(case: Case) -> str | None:
    """Why a case makes no sense, in a sentence; None if it does."""
    if case.head == 'none' and case.mode == 'logits':
        return 'mode logits is for segmentors, and head none has no logits'
    if case.head == 'uperhead' and case.mode == 'train' and case.batch == 1:
        return (
            'UPerNet is not trained with a batch of 1: batch norm has a single value '
            'for each channel of its 1x1 pooling'
        )
    return None
