"""The recipes in SSSegmentation's setting.

Facts: its ``configs/upernet/upernet_{pcpvt,svt}{small,base,large}_ade20k.py``, and the
names and shapes of its published checkpoints.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, DefaultScope
from mmseg.registry import MODELS
from torch import nn

from builders import meta_state, shapes_of
from mmseg_twins.checkpoints.conversion import convert_state_dict

CONFIGS = Path(__file__).parents[2] / 'configs'
DROP_PATH_RATES = {
    'pcpvt-s': 0.2,
    'pcpvt-b': 0.3,
    'pcpvt-l': 0.3,
    'svt-s': 0.2,
    'svt-b': 0.2,
    'svt-l': 0.3,
}
IMAGES, EPOCHS, BATCH = 20210, 130, 16

every_variant = pytest.mark.parametrize('variant', DROP_PATH_RATES)


@cache
def read(variant: str) -> Config:
    return Config.fromfile(
        CONFIGS / f'twins_{variant}_uperhead_8x2_512x512_130e_ade20k.py'
    )


@cache
def build(variant: str) -> nn.Module:
    with torch.device('meta'):
        return MODELS.build(read(variant).model).eval()


def test_every_file_is_known_here():
    files = CONFIGS.glob('*_130e_ade20k.py')

    assert {path.name.split('_')[1] for path in files} == DROP_PATH_RATES.keys()


@every_variant
def test_converted_checkpoint_loads_with_nothing_else_to_set(variant):
    source = meta_state(shapes_of('ssseg-upernet', variant))

    converted, report = convert_state_dict(source)

    assert report.recipe() == Path(read(variant).filename).name
    build(variant).load_state_dict(converted, strict=True, assign=True)


@every_variant
def test_heads_are_as_wide_as_theirs(variant):
    model = build(variant)

    assert model.decode_head.channels == (1024 if variant == 'pcpvt-s' else 512)
    assert model.auxiliary_head.channels == 512


@every_variant
def test_every_norm_of_the_backbone_has_their_eps(variant):
    norms = [
        m for m in build(variant).backbone.modules() if isinstance(m, nn.LayerNorm)
    ]

    assert norms
    assert {norm.eps for norm in norms} == {1e-5}


@every_variant
def test_training_takes_130_epochs_of_all_images(variant):
    cfg = read(variant)

    images = cfg.train_cfg.max_iters * BATCH
    assert EPOCHS * IMAGES - BATCH < images <= EPOCHS * IMAGES
    assert cfg.train_cfg.type == 'IterBasedTrainLoop'
    assert cfg.train_dataloader.batch_size * 8 == BATCH
    assert cfg.auto_scale_lr.base_batch_size == BATCH


@every_variant
def test_schedule_is_the_same_for_all(variant):
    cfg, first = read(variant), read('svt-s')

    assert cfg.param_scheduler == first.param_scheduler
    assert cfg.train_cfg == first.train_cfg


@pytest.mark.filterwarnings('ignore:Detected call of .scheduler.step')
def test_learning_rate_rises_for_1500_iterations_and_ends_at_zero():
    cfg = read('svt-s')
    last = cfg.train_cfg.max_iters
    with DefaultScope.overwrite_default_scope('mmseg'):
        optim_wrapper = build_optim_wrapper(nn.Linear(1, 1), cfg.optim_wrapper)
        schedulers = [
            PARAM_SCHEDULERS.build({**item, 'optimizer': optim_wrapper})
            for item in cfg.param_scheduler
        ]
    rates = []
    for _ in range(last):
        rates.append(optim_wrapper.param_groups[0]['lr'])
        for scheduler in schedulers:
            scheduler.step()
    rates.append(optim_wrapper.param_groups[0]['lr'])

    assert rates[0] == pytest.approx(6e-5 * 1e-6)
    assert rates[1500] == pytest.approx(6e-5, rel=1e-3)
    middle = (1500 + last) // 2
    assert rates[middle] == pytest.approx(3e-5, rel=1e-3)
    assert rates[-1] == pytest.approx(0, abs=1e-12)


@every_variant
def test_the_rest_is_the_upernet_recipe(variant):
    cfg = read(variant)
    workers = '8x4' if variant == 'pcpvt-s' else '8x2'
    base = Config.fromfile(
        CONFIGS / f'twins_{variant}_uperhead_{workers}_512x512_160k_ade20k.py'
    )

    assert cfg.optim_wrapper == base.optim_wrapper
    assert cfg.optim_wrapper.optimizer.type == 'AdamW'
    assert cfg.optim_wrapper.optimizer.lr == 6e-5
    assert cfg.optim_wrapper.optimizer.weight_decay == 0.01
    assert cfg.model.backbone.drop_path_rate == DROP_PATH_RATES[variant]
    assert cfg.model.backbone.arch == base.model.backbone.arch
    assert cfg.test_pipeline == base.test_pipeline
    assert cfg.train_pipeline == base.train_pipeline
