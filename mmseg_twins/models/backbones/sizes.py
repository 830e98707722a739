"""The sizes of the Twins variants by stage, and checks of sizes in configs.

Tables: arXiv 2104.13840, tables 7 (PCPVT) and 8 (SVT), with the values of the
official ``segmentation/gvt.py``. The row ``None`` holds the defaults of
mmsegmentation's built-in class of the same name, which apply without ``arch``, so that
a config written for the built-in means the same here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import SettingError


@dataclass(frozen=True)
class Sizes:
    """The sizes of a variant. Every field but ``qkv_bias`` has one value per stage.

    Attributes:
        embed_dims: channels.
        num_heads: attention heads, a divisor of the channels.
        mlp_ratios: hidden width of the MLP, in multiples of the channels.
        depths: number of blocks.
        sr_ratios: kernel and stride of the convolution that makes GSA's keys and
            values.
        window_sizes: side of LSA's windows in tokens; None in a family without LSA.
        patch_sizes: kernel of the patch embedding; by default 4, then 2.
        strides: stride of the patch embedding; by default 4, then 2.
        qkv_bias: whether query, key and value have a bias.
    """

    embed_dims: tuple[int, ...]
    num_heads: tuple[int, ...]
    mlp_ratios: tuple[float, ...]
    depths: tuple[int, ...]
    sr_ratios: tuple[int, ...]
    window_sizes: tuple[int, ...] | None = None
    patch_sizes: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None
    qkv_bias: bool = True

    @property
    def num_stages(self) -> int:
        """Return the number of stages."""
        return len(self.depths)

    @property
    def min_image_side(self) -> int:
        """Return the smallest image side, in pixels, that every stage can handle."""
        return max(
            math.prod(self.strides[: stage + 1]) * ratio
            for stage, ratio in enumerate(self.sr_ratios)
        )


# An aligned table reads better than short lines.
# ruff: noqa: E501
# fmt: off
PCPVT_SIZES = {
    #               embed_dims            num_heads      mlp_ratios    depths         sr_ratios
    'small': Sizes((64, 128, 320, 512),  (1, 2, 5, 8),  (8, 8, 4, 4), (3, 4, 6, 3),  (8, 4, 2, 1)),
    'base':  Sizes((64, 128, 320, 512),  (1, 2, 5, 8),  (8, 8, 4, 4), (3, 4, 18, 3), (8, 4, 2, 1)),
    'large': Sizes((64, 128, 320, 512),  (1, 2, 5, 8),  (8, 8, 4, 4), (3, 8, 27, 3), (8, 4, 2, 1)),
    None:    Sizes((64, 128, 256, 512),  (1, 2, 4, 8),  (4, 4, 4, 4), (3, 4, 6, 3),  (8, 4, 2, 1), qkv_bias=False),
}
SVT_SIZES = {
    #               embed_dims             num_heads        mlp_ratios    depths         sr_ratios     window_sizes
    'small': Sizes((64, 128, 256, 512),   (2, 4, 8, 16),   (4, 4, 4, 4), (2, 2, 10, 4), (8, 4, 2, 1), (7, 7, 7, 7)),
    'base':  Sizes((96, 192, 384, 768),   (3, 6, 12, 24),  (4, 4, 4, 4), (2, 2, 18, 2), (8, 4, 2, 1), (7, 7, 7, 7)),
    'large': Sizes((128, 256, 512, 1024), (4, 8, 16, 32),  (4, 4, 4, 4), (2, 2, 18, 2), (8, 4, 2, 1), (7, 7, 7, 7)),
    None:    Sizes((64, 128, 256),        (1, 2, 4),       (4, 4, 4),    (4, 4, 4),     (4, 2, 1),    (7, 7, 7), qkv_bias=False),
}
# fmt: on


def choose_sizes(
    table: Mapping[str | None, Sizes],
    arch: str | None,
    given: Mapping[str, Any],
) -> Sizes:
    """Return a row of a family's table, with some of its fields overridden.

    Args:
        table: the family's sizes by ``arch``.
        arch: selects the row.
        given: fields of :class:`Sizes` that override the row's.

    Returns:
        The sizes, checked and complete.

    Raises:
        TypeError: ``given`` has a name that is not a field of the family's sizes.
        SettingError: ``arch`` does not exist, or a value is not allowed.
    """
    if arch not in table:
        allowed = ', '.join(repr(name) for name in table if name)
        raise SettingError(
            f'arch={arch!r} is unknown; give one of {allowed}, or leave it out and '
            'give embed_dims, num_heads, mlp_ratios, depths and sr_ratios'
        )
    sizes = table[arch]
    fields = [
        field.name
        for field in dataclasses.fields(Sizes)
        if field.name != 'window_sizes' or sizes.window_sizes
    ]
    for name, value in given.items():
        if name not in fields:
            raise TypeError(
                f'unexpected argument {name!r}; the sizes that can be given are '
                f'{", ".join(fields)}'
            )
        value = value if name == 'qkv_bias' else as_stages(name, value)
        sizes = dataclasses.replace(sizes, **{name: value})
    halvings = (4, *[2] * (sizes.num_stages - 1))
    sizes = dataclasses.replace(
        sizes,
        patch_sizes=sizes.patch_sizes or halvings,
        strides=sizes.strides or halvings,
    )
    check_sizes(sizes)
    return sizes


def as_stages(name: str, value: Sequence[float]) -> tuple[float, ...]:
    """Return ``value`` as a tuple of positive numbers, one per stage.

    Raises:
        SettingError: it is not a list of positive numbers, which must be integers in
            all but ``mlp_ratios``.
    """
    kinds = (int, float) if name == 'mlp_ratios' else int
    if (
        not isinstance(value, Sequence)
        or not value
        or not all(isinstance(n, kinds) and n > 0 for n in value)
    ):
        numbers = 'numbers' if name == 'mlp_ratios' else 'integers'
        raise SettingError(
            f'{name}={value!r} is not a list of positive {numbers}, one per stage'
        )
    return tuple(value)


def check_sizes(sizes: Sizes) -> None:
    """Check that the fields of ``sizes`` are consistent.

    Raises:
        SettingError: the fields have different numbers of stages, or the heads of a
            stage do not divide its channels.
    """
    lengths = {
        name: len(value)
        for name, value in dataclasses.asdict(sizes).items()
        if isinstance(value, tuple)
    }
    if len(set(lengths.values())) > 1:
        raise SettingError(
            'all lists need the same length, one value per stage; given: '
            + ', '.join(f'{name} {length}' for name, length in lengths.items())
        )
    for stage, (dims, heads) in enumerate(
        zip(sizes.embed_dims, sizes.num_heads, strict=True)
    ):
        if dims % heads:
            raise SettingError(
                f'num_heads[{stage}]={heads} does not divide '
                f'embed_dims[{stage}]={dims}; all heads need the same number of '
                'channels'
            )
