"""Tiny segmentors for the tests of the export."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS

DIMS = [8, 16, 24, 32]


def tiny_config(
    family: str = 'SVT',
    head: str = 'mmseg_twins.UPerHead',
    *,
    stages: int = 4,
    align_corners: bool = False,
    depths: Sequence[int] = (2, 1, 1, 1),
) -> dict:
    """A segmentor's config of narrow layers; Semantic FPN has its neck."""
    dims = DIMS[:stages]
    windows = dict(window_sizes=[7] * stages) if family == 'SVT' else {}
    shared = dict(
        type=head,
        in_index=list(range(stages)),
        channels=8,
        num_classes=5,
        norm_cfg=dict(type='BN'),
        align_corners=align_corners,
    )
    if 'FPN' in head:
        neck = dict(type='FPN', in_channels=dims, out_channels=8, num_outs=stages)
        shared |= dict(in_channels=[8] * stages, feature_strides=[4, 8, 16, 32])
    else:
        neck = None
        shared |= dict(in_channels=dims, pool_scales=(1, 2, 3, 6))
    return dict(
        type='EncoderDecoder',
        data_preprocessor=dict(
            type='SegDataPreProcessor',
            mean=[123.675, 116.28, 103.53],
            std=[58.395, 57.12, 57.375],
            bgr_to_rgb=True,
        ),
        backbone=dict(
            type=f'mmseg_twins.{family}',
            embed_dims=dims,
            num_heads=[1, 2, 3, 4][:stages],
            mlp_ratios=[2] * stages,
            depths=list(depths[:stages]),
            sr_ratios=[8, 4, 2, 1][:stages],
            qkv_bias=True,
            **windows,
        ),
        neck=neck,
        decode_head=shared,
        test_cfg=dict(mode='whole'),
    )


@pytest.fixture
def make_segmentor() -> Callable[..., EncoderDecoder]:
    """Makes a float64 segmentor in evaluation mode, no parameter at a special value."""

    def make(*args, **kwargs) -> EncoderDecoder:
        with DefaultScope.overwrite_default_scope('mmseg'):
            segmentor = MODELS.build(ConfigDict(tiny_config(*args, **kwargs)))
        segmentor = segmentor.double().eval()
        with torch.no_grad():
            for parameter in segmentor.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            for name, buffer in segmentor.named_buffers():
                if name.endswith('running_mean'):
                    buffer.add_(0.1 * torch.randn_like(buffer))
        return segmentor

    return make


@pytest.fixture
def config_text() -> Callable[..., str]:
    """The text of a config file with a tiny segmentor and a dataset's classes."""

    def make(*args, **kwargs) -> str:
        return (
            "default_scope = 'mmseg'\n"
            "custom_imports = dict(imports=['mmseg_twins'])\n"
            "test_dataloader = dict(dataset=dict(type='ADE20KDataset'))\n"
            f'model = {tiny_config(*args, **kwargs)!r}\n'
        )

    return make
