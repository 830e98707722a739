"""Backbones under other heads: image sizes, sliding windows, Mask2Former's settings."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS
from torch import Tensor, nn

from builders import ROOT, TINY, tiny

WIDTHS = list(TINY['embed_dims'])
HEADS = {
    'SegformerHead': dict(in_channels=WIDTHS, in_index=[0, 1, 2, 3]),
    'mmseg_twins.UPerHead': dict(in_channels=WIDTHS, in_index=[0, 1, 2, 3]),
    'PSPHead': dict(in_channels=WIDTHS[3], in_index=3),
    'ASPPHead': dict(in_channels=WIDTHS[3], in_index=3, dilations=(1, 3)),
}
SIZES = [(64, 64), (97, 131), (64, 200), (160, 96), (64, 64)]


def segmentor(family: str, head: str) -> nn.Module:
    """A segmentor in float64 whose head takes the maps of a tiny backbone."""
    windows = dict(window_sizes=(7, 7, 7, 7)) if family == 'SVT' else {}
    cfg = dict(
        type='EncoderDecoder',
        backbone=dict(type=f'mmseg_twins.{family}', **TINY, **windows),
        decode_head=dict(
            type=head,
            channels=8,
            num_classes=5,
            norm_cfg=dict(type='BN'),
            align_corners=False,
            **HEADS[head],
        ),
        test_cfg=dict(mode='whole'),
    )
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg)
    model.backbone = tiny(family)
    return model.double().eval()


def predict(model: nn.Module, image: Tensor) -> Tensor:
    return model.encode_decode(image, [dict(img_shape=image.shape[2:])])


@pytest.mark.parametrize('family', ['PCPVT', 'SVT'])
@pytest.mark.parametrize('head', HEADS)
@torch.no_grad()
def test_sizes_one_after_another_do_not_touch_each_other(family: str, head: str):
    model = segmentor(family, head)
    images = [torch.rand(1, 3, *size, dtype=torch.float64) for size in SIZES]
    images[-1] = images[0]
    logits = [predict(model, image) for image in images]

    assert [tuple(y.shape) for y in logits] == [(1, 5, *size) for size in SIZES]
    assert torch.equal(logits[0], logits[-1])
    fresh = segmentor(family, head)
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(
        predict(fresh, images[3]), logits[3], rtol=1e-10, atol=1e-12
    )


@torch.no_grad()
def test_sliding_windows_agree_with_the_windows_predicted_alone():
    model = segmentor('SVT', 'SegformerHead')
    # As the Cityscapes configs, at an eighth: windows two thirds apart.
    height, width = 64, 128
    model.test_cfg = ConfigDict(mode='slide', crop_size=(64, 128), stride=(42, 85))
    image = torch.rand(1, 3, 128, 256, dtype=torch.float64)
    shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), (128, 256))
    logits = model.slide_inference(image, [shapes])

    corner = predict(model, image[..., :height, :width])
    assert logits.shape == (1, 5, 128, 256)
    # The first third of the first window is in no other.
    alone = (..., slice(0, 42), slice(0, 85))
    torch.testing.assert_close(logits[alone], corner[alone])


@pytest.fixture(scope='module')
def mask2former() -> Config:
    # Without mmdet the config can be read, if not run.
    path = ROOT / 'configs/heads/twins_svt-s_mask2former_8x2_512x512_160k_ade20k.py'
    return Config.fromfile(path, import_custom_modules=False)


@pytest.fixture(scope='module')
def mask2former_backbone(mask2former: Config) -> nn.Module:
    with torch.device('meta'):
        return MODELS.build(mask2former.model.backbone | dict(init_cfg=None))


def test_mask2former_takes_the_maps_that_the_backbone_gives(
    mask2former: Config, mask2former_backbone: nn.Module
):
    with torch.no_grad():
        maps = mask2former_backbone(torch.empty(1, 3, 64, 96, device='meta'))
    head = mask2former.model.decode_head

    assert [m.shape[1] for m in maps] == head.in_channels
    assert [64 // m.shape[2] for m in maps] == head.strides
    assert mask2former.custom_imports.imports == ['mmseg_twins', 'mmdet.models']


def test_mask2former_trains_the_backbone_at_a_tenth_without_decay_of_norms(
    mask2former: Config, mask2former_backbone: nn.Module
):
    model = nn.ModuleDict(dict(backbone=mask2former_backbone))
    options = mask2former.optim_wrapper
    constructor = DefaultOptimWrapperConstructor(
        dict(optimizer=options.optimizer), options.paramwise_cfg
    )
    groups = constructor(model).optimizer.param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    assert {group['lr'] for group in groups} == {options.optimizer.lr * 0.1}
    for group in groups:
        name = names[id(group['params'][0])]
        undecayed = 'norm' in name or 'position_encodings' in name
        expected = 0 if undecayed else options.optimizer.weight_decay
        assert group['weight_decay'] == expected, name
