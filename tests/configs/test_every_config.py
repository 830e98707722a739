"""Every config builds and takes a training step, at an eighth of its width.

The heads, the losses, the layout of the backbone and the optimizer are the config's
own. Channels are cut, crops are of 64 px, and stochastic depth is off, so that a step
reaches every parameter.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import nn

from mmseg_twins.models.backbones.sizes import PCPVT_SIZES, SVT_SIZES

CONFIGS = Path(__file__).parents[2] / 'configs'
TABLES = {'mmseg_twins.PCPVT': PCPVT_SIZES, 'mmseg_twins.SVT': SVT_SIZES}
CUT = 8
SIDE = 64

# One of each head, family and dataset runs always, the others with `--all`.
QUICK = [
    'twins_pcpvt-s_uperhead_8x4_512x512_160k_ade20k',
    'heads/twins_svt-s_segformer_8x2_512x512_160k_ade20k',
    'heads/twins_pcpvt-s_pspnet_8x4_512x512_160k_ade20k',
    'heads/twins_svt-s_deeplabv3plus_8x2_512x512_160k_ade20k',
    'cityscapes/twins_svt-s_uperhead_8x1_512x1024_160k_cityscapes',
    'cityscapes/twins_pcpvt-s_fpn_fpnhead_8x2_512x1024_80k_cityscapes',
    'demo/twins_svt_fpn_streets',
]
MASK2FORMER = 'heads/twins_svt-s_mask2former_8x2_512x512_160k_ade20k'
NAMES = sorted(
    path.relative_to(CONFIGS).with_suffix('').as_posix()
    for path in CONFIGS.rglob('*.py')
    if '_base_' not in path.parts
)
needs_mmdet = pytest.mark.skipif(
    importlib.util.find_spec('mmdet') is None, reason='needs mmdet and full mmcv'
)


def marked(name: str):
    marks = [] if name in QUICK else [pytest.mark.slow]
    return pytest.param(name, marks=[needs_mmdet] if name == MASK2FORMER else marks)


@pytest.fixture(autouse=True)
def _scope():
    with DefaultScope.overwrite_default_scope('mmseg'):
        yield


def read(name: str) -> Config:
    # mmdet, which the config of Mask2Former imports, need not be there.
    cfg = Config.fromfile(CONFIGS / f'{name}.py', import_custom_modules=False)
    cfg.model.backbone.init_cfg = None
    return cfg


def widths_of(backbone: ConfigDict) -> list[int]:
    sizes = TABLES[backbone.type][backbone.arch]
    return list(backbone.get('embed_dims', sizes.embed_dims))


def cut(cfg: Config) -> Config:
    """Divides what channels there are, wherever the config says how many."""
    model = cfg.model
    backbone = model.backbone
    widths = widths_of(backbone)
    backbone.update(embed_dims=[w // CUT for w in widths], drop_path_rate=0.0)
    for part in (model.get('neck'), model.decode_head, model.get('auxiliary_head')):
        for key in ('in_channels', 'out_channels', 'channels', 'c1_in_channels'):
            value = (part or {}).get(key)
            if isinstance(value, int):
                part[key] = value // CUT
            elif value is not None:
                part[key] = [channels // CUT for channels in value]
    if model.data_preprocessor.get('size'):
        model.data_preprocessor.size = (SIDE, SIDE)
    return cfg


def batch(num_classes: int, images: int = 2) -> dict:
    samples = []
    for _ in range(images):
        shape = dict(img_shape=(SIDE, SIDE), ori_shape=(SIDE, SIDE))
        sample = SegDataSample(metainfo=dict(**shape, pad_shape=(SIDE, SIDE)))
        labels = torch.randint(num_classes, (1, SIDE, SIDE))
        sample.gt_sem_seg = PixelData(data=labels)
        samples.append(sample)
    images = torch.randint(256, (images, 3, SIDE, SIDE), dtype=torch.uint8)
    return dict(inputs=list(images), data_samples=samples)


def build(cfg: Config) -> nn.Module:
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    model.init_weights()
    return model.train()


def test_the_quick_ones_are_among_all():
    assert set(QUICK) < set(NAMES)
    assert MASK2FORMER in NAMES


@pytest.mark.parametrize('name', [marked(name) for name in NAMES])
def test_a_training_step_reaches_every_parameter(name: str):
    cfg = cut(read(name))
    model = build(cfg)
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    logs = model.train_step(batch(cfg.model.decode_head.num_classes), optim_wrapper)

    losses = {name: float(value) for name, value in logs.items() if 'loss' in name}
    assert 'decode.loss_ce' in losses or name == MASK2FORMER
    assert ('aux.loss_ce' in losses) == bool(cfg.model.get('auxiliary_head'))
    assert all(0 < value < float('inf') for value in losses.values())
    same = {
        name for name, p in model.named_parameters() if torch.equal(p, before[name])
    }
    assert same == set()
