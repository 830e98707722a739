"""Backbones under other heads: maps, sizes, sliding windows, weight decay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS
from torch import nn

from builders import TINY, tiny

CONFIGS = Path(__file__).parents[2] / 'configs'
MASK2FORMER = 'heads/twins_svt-s_mask2former_8x2_512x512_160k_ade20k'
SIZES = [(64, 64), (97, 131), (64, 200), (160, 96), (64, 64)]

families = pytest.mark.parametrize('family', ['PCPVT', 'SVT'])


def segmentor(family: str, head: dict, **kwargs) -> nn.Module:
    """A segmentor in float64 whose head takes the maps of a tiny backbone."""
    common = dict(
        channels=8,
        num_classes=5,
        dropout_ratio=0.0,
        norm_cfg=dict(type='BN'),
        align_corners=False,
    )
    cfg = dict(
        type='EncoderDecoder',
        backbone=dict(type='mmseg_twins.' + family, **TINY),
        decode_head=dict(**common, **head),
        test_cfg=dict(mode='whole'),
        **kwargs,
    )
    if family == 'SVT':
        cfg['backbone']['window_sizes'] = (7, 7, 7, 7)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg)
    model.backbone = tiny(family)
    return model.double().eval()


WIDTHS = list(TINY['embed_dims'])
HEADS = {
    'SegformerHead': dict(in_channels=WIDTHS, in_index=[0, 1, 2, 3]),
    'mmseg_twins.UPerHead': dict(in_channels=WIDTHS, in_index=[0, 1, 2, 3]),
    'PSPHead': dict(in_channels=WIDTHS[3], in_index=3),
    'ASPPHead': dict(in_channels=WIDTHS[3], in_index=3, dilations=(1, 3)),
}


@families
@pytest.mark.parametrize('head', HEADS)
@torch.no_grad()
def test_sizes_one_after_another_do_not_touch_each_other(family: str, head: str):
    model = segmentor(family, dict(type=head, **HEADS[head]))
    images = [torch.rand(1, 3, *size, dtype=torch.float64) for size in SIZES]
    images[-1] = images[0]
    logits = [model.encode_decode(x, [dict(img_shape=x.shape[2:])]) for x in images]

    assert [tuple(y.shape) for y in logits] == [(1, 5, *size) for size in SIZES]
    assert torch.equal(logits[0], logits[-1])
    fresh = segmentor(family, dict(type=head, **HEADS[head]))
    fresh.load_state_dict(model.state_dict())
    last = fresh.encode_decode(images[3], [dict(img_shape=images[3].shape[2:])])
    torch.testing.assert_close(last, logits[3], rtol=1e-10, atol=1e-12)


@families
@pytest.mark.parametrize('out_indices', [(2, 3), (0,), (1, 3)])
@torch.no_grad()
def test_fewer_maps_are_the_same_maps(family: str, out_indices: tuple[int, ...]):
    whole, part = tiny(family).eval(), tiny(family, out_indices=out_indices).eval()
    part.load_state_dict(whole.state_dict())
    image = torch.rand(1, 3, 97, 131, dtype=torch.float64)

    maps, fewer = whole(image), part(image)
    assert len(fewer) == len(out_indices)
    for index, found in zip(out_indices, fewer, strict=True):
        assert torch.equal(found, maps[index])


@torch.no_grad()
def test_sliding_windows_agree_with_the_windows_predicted_alone():
    model = segmentor('SVT', dict(type='SegformerHead', **HEADS['SegformerHead']))
    slide = Config.fromfile(CONFIGS / '_base_/cityscapes_512x1024.py').crop_size
    height, width = (side // 8 for side in slide)
    # As the Cityscapes configs: two thirds of the window apart; cut to an eighth.
    model.test_cfg = ConfigDict(
        mode='slide', crop_size=(height, width), stride=(341 // 8, 683 // 8)
    )
    image = torch.rand(1, 3, 128, 256, dtype=torch.float64)
    meta = [dict(img_shape=(128, 256), ori_shape=(128, 256), pad_shape=(128, 256))]
    logits = model.slide_inference(image, meta)

    corner = model.encode_decode(image[..., :height, :width], meta)
    assert logits.shape == (1, 5, 128, 256)
    # The first third of the first window is in no other.
    alone = (..., slice(0, 42), slice(0, 85))
    torch.testing.assert_close(logits[alone], corner[alone])


@pytest.mark.parametrize(
    'name',
    [
        'twins_svt-s_uperhead_8x1_512x1024_160k_cityscapes',
        'twins_pcpvt-s_fpn_fpnhead_8x2_512x1024_80k_cityscapes',
    ],
)
def test_cityscapes_configs_crop_and_slide_as_their_names_say(name: str):
    cfg = Config.fromfile(CONFIGS / f'cityscapes/{name}.py')
    steps = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    gpus, images = map(int, name.split('_512x')[0].rpartition('_')[2].split('x'))

    assert steps['RandomCrop'].crop_size == cfg.model.data_preprocessor.size
    assert cfg.model.data_preprocessor.size == (512, 1024)
    assert cfg.model.test_cfg.mode == 'slide'
    assert cfg.model.test_cfg.crop_size == (512, 1024)
    assert cfg.model.decode_head.num_classes == 19
    assert cfg.train_dataloader.dataset.type == 'CityscapesDataset'
    assert cfg.train_dataloader.batch_size == images
    assert cfg.auto_scale_lr.base_batch_size == gpus * images


@pytest.fixture(scope='module')
def mask2former() -> Config:
    # Without mmdet the config can be read, if not run.
    return Config.fromfile(CONFIGS / f'{MASK2FORMER}.py', import_custom_modules=False)


def test_mask2former_takes_the_maps_that_the_backbone_gives(mask2former: Config):
    with torch.device('meta'), torch.no_grad():
        backbone = MODELS.build(mask2former.model.backbone | dict(init_cfg=None))
        maps = backbone(torch.empty(1, 3, 64, 96))
    head = mask2former.model.decode_head

    assert [m.shape[1] for m in maps] == head.in_channels
    assert [64 // m.shape[2] for m in maps] == head.strides
    assert list(backbone.sizes.depths) == mask2former.depths
    assert mask2former.custom_imports.imports == ['mmseg_twins', 'mmdet.models']


def test_mask2former_trains_the_backbone_at_a_tenth_without_decay_of_norms(
    mask2former: Config,
):
    with torch.device('meta'):
        model = nn.ModuleDict(
            dict(
                backbone=MODELS.build(mask2former.model.backbone | dict(init_cfg=None))
            )
        )
    options = mask2former.optim_wrapper
    constructor = DefaultOptimWrapperConstructor(
        dict(optimizer=options.optimizer), options.paramwise_cfg
    )
    groups = constructor(model).optimizer.param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decays = {names[id(group['params'][0])]: group['weight_decay'] for group in groups}
    keys = [key for key in options.paramwise_cfg.custom_keys if 'backbone' in key]

    assert {group['lr'] for group in groups} == {options.optimizer.lr * 0.1}
    for name, decay in decays.items():
        undecayed = 'norm' in name or 'position_encodings' in name
        assert decay == (0 if undecayed else options.optimizer.weight_decay), name
    assert [key for key in keys if not any(key in name for name in decays)] == []
