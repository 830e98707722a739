"""The models that checkpoints are verified against, built without memory for weights.

mmsegmentation's models are imported only for segmentors.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from mmengine.model import BaseModule
from torch import Size

from ..errors import CheckpointError
from ..models.backbones import PCPVT, SVT

FAMILIES = {'pcpvt': PCPVT, 'svt': SVT}
ARCHS = {'s': 'small', 'b': 'base', 'l': 'large'}
VARIANTS = tuple(f'{family}-{size}' for family in FAMILIES for size in ARCHS)
MAX_WIDTH = 1 << 14  # of heads; those of configs have up to 1024 channels


@dataclass(frozen=True)
class Heads:
    """The heads of a segmentor.

    Attributes:
        kind: ``'uperhead'`` or ``'fpn'``, as in the names of configs.
        channels: width of the decode head.
        num_classes: number of classes, the same for all heads.
        auxiliary_channels: width of the auxiliary head; None without one.
        neck_channels: width of the neck of ``'fpn'``; None for ``'uperhead'``.
    """

    kind: str
    channels: int
    num_classes: int
    auxiliary_channels: int | None = None
    neck_channels: int | None = None

    @classmethod
    def of(cls, shapes: Mapping[str, Size]) -> Heads:
        """Detect the heads.

        Args:
            shapes: a segmentor's shapes by mmsegmentation's names.

        Raises:
            CheckpointError: there is no decode head of a known kind.
        """

        def width(*prefixes: str) -> int:
            """Return the most common number of rows, despite a wrong tensor."""
            rows = [
                shape[0]
                for name, shape in shapes.items()
                if name.startswith(prefixes) and len(shape)
            ]
            return statistics.mode(rows) if rows else 0

        num_classes = width('decode_head.conv_seg.', 'auxiliary_head.conv_seg.')
        auxiliary = width('auxiliary_head.convs.') or None
        upernet = width('decode_head.lateral_convs.', 'decode_head.fpn_convs.')
        fpn, neck = width('decode_head.scale_heads.'), width('neck.')
        widest = max(num_classes, auxiliary or 0, upernet, fpn, neck)
        if widest > MAX_WIDTH:
            raise CheckpointError(
                f'the segmentor has a head with {widest} channels; the maximum is '
                f'{MAX_WIDTH}'
            )
        if num_classes and upernet:
            return cls('uperhead', upernet, num_classes, auxiliary)
        if num_classes and fpn and neck:
            return cls('fpn', fpn, num_classes, auxiliary, neck)
        modules = {'.'.join(name.split('.')[:2]) for name in shapes}
        heads = sorted(name for name in modules if not name.startswith('backbone.'))
        raise CheckpointError(
            'the segmentor has neither a UPerNet nor a Semantic FPN head (besides the '
            f'backbone it has {", ".join(heads) or "nothing"}); --backbone-only '
            'converts the backbone alone'
        )


def build_model(variant: str, heads: Heads | None = None) -> BaseModule:
    """Return a backbone, or a segmentor, on the meta device in evaluation mode."""
    family, size = variant.split('-')
    with torch.device('meta'):
        if heads is None:
            return FAMILIES[family](arch=ARCHS[size]).eval()
        return build_segmentor(FAMILIES[family], ARCHS[size], heads).eval()


def build_segmentor(family: type[BaseModule], arch: str, heads: Heads) -> BaseModule:
    """Return the segmentor with the given heads."""
    import mmseg.models  # noqa: F401, registers them
    from mmseg.registry import MODELS

    widths = list(family.size_table[arch].embed_dims)
    shared = dict(
        norm_cfg=dict(type='BN'), align_corners=False, num_classes=heads.num_classes
    )
    head = dict(channels=heads.channels, in_index=[0, 1, 2, 3], **shared)
    neck = auxiliary = None
    if heads.kind == 'uperhead':
        head |= dict(type='UPerHead', in_channels=widths, pool_scales=(1, 2, 3, 6))
    else:
        width = heads.neck_channels
        neck = dict(type='FPN', in_channels=widths, out_channels=width, num_outs=4)
        head |= dict(
            type='FPNHead', in_channels=[width] * 4, feature_strides=[4, 8, 16, 32]
        )
    if heads.auxiliary_channels:
        auxiliary = dict(
            type='FCNHead',
            in_channels=widths[2],
            in_index=2,
            channels=heads.auxiliary_channels,
            num_convs=1,
            concat_input=False,
            **shared,
        )
    with warnings.catch_warnings():
        # About the configuration of losses, which does not matter here.
        warnings.filterwarnings('ignore', module=r'mmseg\.models')
        return MODELS.build(
            dict(
                type='EncoderDecoder',
                backbone=dict(type=family, arch=arch),
                neck=neck,
                decode_head=head,
                auxiliary_head=auxiliary,
                test_cfg=dict(mode='whole'),
            )
        )
