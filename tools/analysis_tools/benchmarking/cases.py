"""Cases to measure: combinations of model, kind of step, and input size."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmseg_twins.errors import SettingError

HEADS = {
    'none': 'the backbone alone',
    'uperhead': 'UPerNet with its auxiliary head',
    'fpn': 'Semantic FPN',
}
MODES = {
    'inference': 'image to feature maps (backbone) or to the class of each pixel',
    'slide': 'image to the class of each pixel, in sliding windows (segmentor)',
    'logits': "image to logits at 1/4 of the image's size (segmentor)",
    'train': 'forward and backward pass (backbone) or a complete training step',
}
DTYPES = {
    'fp32': 'no autocast',
    'bf16': 'autocast to bfloat16',
    'fp16': 'autocast to float16, on a GPU',
}
MIN_SIDE = 32  # pixels, for one token in the last stage of every variant
WINDOW, STRIDE = 512, 341  # pixels, of sliding windows
# An image size at which the built-in's padding mask is right.
CHECK_SIZE = (256, 320)


@dataclass(frozen=True)
class Case:
    """A case, measured for every implementation; height and width are in pixels."""

    variant: str
    head: str
    mode: str
    dtype: str
    batch: int
    height: int
    width: int

    @property
    def title(self) -> str:
        """The case as text, such as ``svt-s inference fp32, 1 x 512x512``."""
        head = '' if self.head == 'none' else f' {self.head}'
        return (
            f'{self.variant}{head} {self.mode} {self.dtype}, '
            f'{self.batch} x {self.height}x{self.width}'
        )

    def at_check_size(self) -> Case:
        """Return the case with the image size for the comparison of outputs.

        It is the case's own size unless the built-in attends to padding there.
        """
        if self.mode == 'slide':
            return replace(self, height=WINDOW, width=WINDOW)
        if builtin_mask_is_right(self.variant, self.height, self.width):
            return self
        return replace(self, height=CHECK_SIZE[0], width=CHECK_SIZE[1])

    @property
    def objection(self) -> str:
        """Why the case makes no sense; empty if it makes sense."""
        if self.head == 'none' and self.mode in ('logits', 'slide'):
            return f'mode {self.mode} is for segmentors, not for head none'
        if self.mode == 'slide' and max(self.height, self.width) <= WINDOW:
            return f'mode slide is for images larger than a window of {WINDOW} px'
        if self.head == 'uperhead' and self.mode == 'train' and self.batch == 1:
            return (
                'UPerNet cannot be trained with a batch of 1: after its 1x1 pooling, '
                'batch norm has a single value per channel'
            )
        return ''


@dataclass(frozen=True)
class Settings:
    """Settings of the measurement, from the command's options; memory in bytes."""

    device: str = 'cpu'
    implementations: tuple[str, ...] = ('package', 'built-in')
    runs: int = 10
    warmup: int = 2
    threads: int | None = None
    seed: int = 0
    inference_mode: bool = False
    compile: bool = False
    max_memory: int | None = None


def builtin_mask_is_right(variant: str, height: int, width: int) -> bool:
    """Whether mmsegmentation's SVT ignores padding at an image size.

    It attends to padding in stages where only one side of the map needs padding to a
    multiple of 7. PCPVT has no windows and is right at every size.
    """
    if variant.startswith('pcpvt'):
        return True
    for downsampling in (4, 8, 16, 32):
        rows, columns = (-(-side // downsampling) for side in (height, width))
        if (rows % 7 == 0) != (columns % 7 == 0):
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
    """Return every combination that makes sense.

    Args:
        variants: backbones, such as ``'svt-s'``.
        heads: some of ``HEADS``.
        modes: some of ``MODES``.
        dtypes: some of ``DTYPES``.
        sizes: heights and widths of the images in pixels.
        batches: batch sizes; None for 1, and 2 in training.

    Returns:
        The cases, and the reasons for combinations that were left out.

    Raises:
        SettingError: an image is too small, or nothing is left.
    """
    for height, width in sizes:
        if min(height, width) < MIN_SIDE:
            raise SettingError(
                f'images of {height}x{width} px are too small; both sides need at '
                f'least {MIN_SIDE} px'
            )
    combinations = itertools.product(
        *map(dict.fromkeys, (variants, heads, modes, dtypes, sizes))
    )
    cases = [
        Case(variant, head, mode, dtype, batch, height, width)
        for variant, head, mode, dtype, (height, width) in combinations
        for batch in dict.fromkeys(batches or [2 if mode == 'train' else 1])
    ]
    left_out = list(dict.fromkeys(c.objection for c in cases if c.objection))
    cases = [case for case in cases if not case.objection]
    if not cases:
        raise SettingError(f'nothing is left to measure: {"; ".join(left_out)}')
    return cases, left_out
