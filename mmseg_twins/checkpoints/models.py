"""The models that checkpoints are checked against, built without memory for weights.

A converted checkpoint is compared with the names and shapes of the model that it is
for, and then loaded into it. mmsegmentation is imported only for segmentors.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from mmengine.model import BaseModule
from torch import Size, Tensor
from torch.overrides import TorchFunctionMode

from ..errors import CheckpointError
from ..models.backbones import PCPVT, SVT

FAMILIES = {'pcpvt': PCPVT, 'svt': SVT}
ARCHS = {'s': 'small', 'b': 'base', 'l': 'large'}
MAX_WIDTH = 1 << 14  # of heads; those of configs have up to 1024 channels
VARIANTS = tuple(f'{family}-{size}' for family in FAMILIES for size in ARCHS)


class Uninitialized(TorchFunctionMode):
    """Leaves random initialization out while modules are built.

    On the meta device there is nothing to initialize, but PyTorch imports its
    compiler for random numbers there, which takes a second and memory.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


def build_backbone(variant: str) -> BaseModule:
    """A variant's backbone on the meta device, in evaluation mode."""
    family, size = variant.split('-')
    with torch.device('meta'), Uninitialized():
        return FAMILIES[family](arch=ARCHS[size]).eval()


@cache
def backbone_tensors(variant: str) -> Mapping[str, Tensor]:
    """A variant's state dict on the meta device: names and shapes."""
    return build_backbone(variant).state_dict()


@dataclass(frozen=True)
class Heads:
    """What stands on a segmentor's backbone.

    Attributes:
        kind: ``'uperhead'`` or ``'fpn'``, as configs are named.
        channels: width of the decode head.
        num_classes: classes that the heads tell apart.
        auxiliary_channels: width of the auxiliary head; None without one.
        neck_channels: width of the neck of ``'fpn'``.
    """

    kind: str
    channels: int
    num_classes: int
    auxiliary_channels: int | None = None
    neck_channels: int | None = None

    @classmethod
    def of(cls, shapes: Mapping[str, Size]) -> Heads:
        """Read the heads from a segmentor's tensors.

        Args:
            shapes: shapes by mmsegmentation's names, at least those of the heads.

        Raises:
            CheckpointError: there is no decode head, or none that is known.
        """

        def width(*prefixes: str) -> int | None:
            """Most common number of rows, so that one odd tensor does not decide."""
            rows = [
                shape[0]
                for name, shape in shapes.items()
                if name.startswith(prefixes) and len(shape)
            ]
            return statistics.mode(rows) if rows else None

        num_classes = width('decode_head.conv_seg.', 'auxiliary_head.conv_seg.')
        auxiliary = width('auxiliary_head.convs.')
        upernet = width('decode_head.lateral_convs.', 'decode_head.fpn_convs.')
        fpn, neck = width('decode_head.scale_heads.'), width('neck.')
        widest = max(
            filter(None, (num_classes, auxiliary, upernet, fpn, neck)), default=0
        )
        if widest > MAX_WIDTH:
            raise CheckpointError(
                f'the segmentor has a head with {widest} channels; up to {MAX_WIDTH} '
                'can be checked'
            )
        if num_classes and upernet:
            return cls('uperhead', upernet, num_classes, auxiliary)
        if num_classes and fpn and neck:
            return cls('fpn', fpn, num_classes, auxiliary, neck)
        found = sorted({'.'.join(name.split('.')[:2]) for name in heads_of(shapes)})
        raise CheckpointError(
            'the segmentor has neither the UPerNet nor the Semantic FPN head that can '
            f'be checked (beside the backbone it has {", ".join(found) or "nothing"}); '
            '--backbone-only converts its backbone alone'
        )


def heads_of(names: Iterable[str]) -> list[str]:
    """A segmentor's names without those of the backbone."""
    return [name for name in names if not name.startswith('backbone.')]


def build_segmentor(variant: str, heads: Heads) -> BaseModule:
    """A whole segmentor on the meta device, in evaluation mode."""
    # Registers mmsegmentation's models; slow to import, and not needed for backbones.
    import mmseg.models  # noqa: F401
    from mmseg.registry import MODELS

    family, size = variant.split('-')
    backbone = dict(type=FAMILIES[family], arch=ARCHS[size])
    widths = list(FAMILIES[family].size_table[ARCHS[size]].embed_dims)
    head = dict(
        norm_cfg=dict(type='BN'),
        align_corners=False,
        num_classes=heads.num_classes,
        channels=heads.channels,
        in_index=[0, 1, 2, 3],
    )
    if heads.kind == 'uperhead':
        neck = None
        head |= dict(type='UPerHead', in_channels=widths, pool_scales=(1, 2, 3, 6))
    else:
        neck = dict(
            type='FPN',
            in_channels=widths,
            out_channels=heads.neck_channels,
            num_outs=4,
        )
        head |= dict(
            type='FPNHead',
            in_channels=[heads.neck_channels] * 4,
            feature_strides=[4, 8, 16, 32],
        )
    auxiliary = None
    if heads.auxiliary_channels:
        auxiliary = dict(
            type='FCNHead',
            in_channels=widths[2],
            in_index=2,
            channels=heads.auxiliary_channels,
            num_convs=1,
            concat_input=False,
            num_classes=heads.num_classes,
            norm_cfg=dict(type='BN'),
            align_corners=False,
        )
    with torch.device('meta'), Uninitialized(), warnings.catch_warnings():
        # About how losses are configured, which do not matter here.
        warnings.filterwarnings('ignore', module=r'mmseg\.models')
        model = MODELS.build(
            dict(
                type='EncoderDecoder',
                backbone=backbone,
                neck=neck,
                decode_head=head,
                auxiliary_head=auxiliary,
                test_cfg=dict(mode='whole'),
            )
        )
    return model.eval()
