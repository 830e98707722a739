"""Threads share models and caches, and nothing stays behind."""

from __future__ import annotations

import copy
import gc
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from mmseg_twins.ops import interpolation

conv3x3, mlp = (sys.modules[f'mmseg_twins.ops.{name}'] for name in ('conv3x3', 'mlp'))
strips = sys.modules['mmseg_twins.ops.upsampled_cross_entropy'].strips
CACHES = (interpolation._cached_matrix, strips)


SIZES = [(64, 64), (72, 100), (45, 130), (96, 32)]


def narrow(head: str, family: str = 'SVT') -> torch.nn.Module:
    """A segmentor of small widths, of whose fused convolutions nothing is left out."""
    widths, classes = [8, 16, 24, 32], 5
    norm = dict(type='BN', requires_grad=True)
    common = dict(num_classes=classes, channels=8, norm_cfg=norm, align_corners=False)
    cfg = dict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor', size_divisor=32),
        backbone=dict(
            type=f'mmseg_twins.{family}',
            embed_dims=widths,
            num_heads=[1, 2, 3, 4],
            mlp_ratios=[2, 2, 2, 2],
            depths=[2, 2, 2, 1],
            sr_ratios=[8, 4, 2, 1],
        ),
        test_cfg=dict(mode='whole'),
        train_cfg=dict(),
    )
    if family == 'SVT':
        cfg['backbone']['window_sizes'] = [7, 7, 7, 7]
    if head == 'uperhead':
        cfg['decode_head'] = dict(
            type='mmseg_twins.UPerHead',
            in_channels=widths,
            in_index=[0, 1, 2, 3],
            pool_scales=(1, 2, 3, 6),
            **common,
        )
        cfg['auxiliary_head'] = dict(
            type='mmseg_twins.FCNHead', in_channels=24, in_index=2, **common
        )
    else:
        cfg['neck'] = dict(type='FPN', in_channels=widths, out_channels=8, num_outs=4)
        cfg['decode_head'] = dict(
            type='mmseg_twins.FPNHead',
            in_channels=[8] * 4,
            in_index=[0, 1, 2, 3],
            feature_strides=[4, 8, 16, 32],
            **common,
        )
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(ConfigDict(cfg))
    return revert_sync_batchnorm(model).eval()


def batch(height: int, width: int, *, labels: bool = False) -> dict:
    """A random image, with labels where it is for training."""
    size = (height, width)
    sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size))
    if labels:
        sample.gt_sem_seg = PixelData(data=torch.randint(5, (1, *size)))
    images = [torch.randint(256, (3, *size), dtype=torch.uint8)]
    return {'inputs': images, 'data_samples': [sample]}


def logits(model, data: dict) -> torch.Tensor:
    """What a prediction gives, in inference mode, which holds for its thread only."""
    with torch.inference_mode():
        (sample,) = model.test_step(data)
    return sample.seg_logits.data


def train_step(model, size: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Gradients of one step; two images, as batch norm needs."""
    model.train()
    one, two = batch(*size, labels=True), batch(*size, labels=True)
    data = model.data_preprocessor(
        {key: one[key] + two[key] for key in one}, training=True
    )
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def empty_caches():
    """The matrices are made anew, as in a process that has just begun."""
    for cache in CACHES:
        cache.cache_clear()
    yield CACHES
    for cache in CACHES:
        cache.cache_clear()


@pytest.fixture(params=['small', 'large'])
def code_for(request, monkeypatch) -> str:
    """Lets small maps go through the code for large ones, too."""
    if request.param == 'large':
        monkeypatch.setattr(conv3x3, 'MIN_CHANNELS', 1)
        monkeypatch.setattr(conv3x3, 'MIN_PIXELS', 1)
        monkeypatch.setattr(conv3x3, 'STRIP', 2**12)
        monkeypatch.setattr(mlp, 'CHUNKED_FROM', 0)
        monkeypatch.setattr(mlp, 'CHUNK', 2**12)
    return request.param


@pytest.mark.parametrize('head', ['uperhead', 'fpn'])
def test_four_threads_predict_what_one_does(head, code_for, empty_caches):
    model = narrow(head)
    images = [batch(*size) for size in SIZES * 4]
    one_by_one = [logits(model, data) for data in images]
    for cache in empty_caches:
        cache.cache_clear()
    # No thread begins before all are there.
    start = threading.Barrier(4)
    with ThreadPoolExecutor(4, initializer=start.wait, initargs=(60,)) as pool:
        together = list(pool.map(lambda data: logits(model, data), images))
    assert all(map(torch.equal, one_by_one, together))


@pytest.mark.parametrize('head', ['uperhead', 'fpn'])
@pytest.mark.parametrize('mode', [torch.inference_mode, torch.no_grad])
def test_training_after_predictions_in_threads_has_the_same_gradients(
    head, mode, empty_caches
):
    model = narrow(head)
    before, after = copy.deepcopy(model), copy.deepcopy(model)
    torch.manual_seed(1)
    expected = train_step(before, (72, 100))
    for cache in empty_caches:
        cache.cache_clear()

    def predict(size):
        with mode():
            model.test_step(batch(*size))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(predict, [(72, 100), (64, 64), (96, 128), (72, 100)]))
    torch.manual_seed(1)
    gradients = train_step(after, (72, 100))
    assert gradients.keys() == expected.keys()
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)


def test_training_after_a_loss_in_inference_mode_has_the_same_gradients(empty_caches):
    model = narrow('uperhead')
    torch.manual_seed(1)
    expected = train_step(copy.deepcopy(model), (64, 96))
    for cache in empty_caches:
        cache.cache_clear()
    data = batch(64, 96, labels=True)
    with torch.inference_mode():
        model(**model.data_preprocessor(data, training=True), mode='loss')
    torch.manual_seed(1)
    gradients = train_step(model, (64, 96))
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)


def test_matrices_of_more_sizes_than_are_kept_are_forgotten(empty_caches):
    cpu = torch.device('cpu')
    for size in range(2, interpolation.CACHE_SIZE + 20):
        interpolation.interpolation(2, size, False, torch.float32, cpu)
    kept = interpolation._cached_matrix.cache_info().currsize
    assert kept == interpolation.CACHE_SIZE


@pytest.mark.parametrize('head', ['uperhead', 'fpn'])
def test_neither_predictions_nor_steps_leave_tensors_behind(head, empty_caches):
    model = narrow(head)
    counts = []
    for _ in range(3):
        train_step(model, (64, 64))
        model.zero_grad()
        logits(model.eval(), batch(64, 64))
        gc.collect()
        counts.append(sum(type(found) is torch.Tensor for found in gc.get_objects()))
    assert counts[1] == counts[2]
