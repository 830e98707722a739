"""mmsegmentation's segmentor and this package's, of equal weights, and their data."""

from __future__ import annotations

import copy
import math

import torch
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmseg.models.segmentors import EncoderDecoder as MMSegEncoderDecoder
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor

from builders import tiny_config
from mmseg_twins.models.segmentors import EncoderDecoder

SLIDE = dict(mode='slide', crop_size=(64, 96), stride=(43, 50))


def make_pair(
    *, classes: int = 5, out_channels: int | None = None, **settings
) -> tuple[MMSegEncoderDecoder, EncoderDecoder]:
    """mmsegmentation's segmentor and this package's, in float64, of equal weights.

    Args:
        classes: of the decode head.
        out_channels: 1 for a binary head.
        settings: of :func:`tiny_config`, or ``test_cfg``.
    """
    test_cfg = settings.pop('test_cfg', dict(mode='whole'))
    cfg = tiny_config(stages=2, depths=(2, 1), pool_scales=(1, 2), **settings)
    cfg['test_cfg'] = test_cfg
    cfg['decode_head'].update(num_classes=classes)
    if out_channels:
        cfg['decode_head'].update(out_channels=out_channels, threshold=0.4)
    pair = []
    for kind in ('EncoderDecoder', 'mmseg_twins.EncoderDecoder'):
        with DefaultScope.overwrite_default_scope('mmseg'):
            model = MODELS.build(ConfigDict(copy.deepcopy({**cfg, 'type': kind})))
        pair.append(model.double().eval())
    builtin, own = pair
    with torch.no_grad():
        for parameter in builtin.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        if out_channels:  # half of a picture's pixels are foreground
            median = builtin(image_of(128, 160)).median()
            builtin.decode_head.conv_seg.bias += math.log(0.4 / 0.6) - median
    own.load_state_dict(builtin.state_dict(), strict=True)
    return builtin, own


def samples_of(*metas: dict) -> list[SegDataSample]:
    return [SegDataSample(metainfo=meta) for meta in metas]


def meta_of(
    size: tuple[int, int],
    *,
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    ori_shape: tuple[int, int] | None = None,
    flip: str | None = None,
) -> dict:
    """Facts of an image, as mmsegmentation's pipeline and preprocessor record them."""
    left, right, top, bottom = padding
    inside = size[0] - top - bottom, size[1] - left - right
    return dict(
        img_shape=inside,
        pad_shape=size,
        img_padding_size=padding,
        ori_shape=ori_shape or inside,
        flip=flip is not None,
        flip_direction=flip,
    )


def image_of(*size: int, batch: int = 1) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, 3, *size, dtype=torch.float64)
