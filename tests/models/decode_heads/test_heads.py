"""The heads against mmsegmentation's own, on the same weights."""

from __future__ import annotations

import mmseg.models  # noqa: F401, registers mmsegmentation's heads
import pytest
import torch
from mmengine.structures import PixelData
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor

CHANNELS = (8, 12, 16, 20)
PYRAMIDS = [
    ((16, 16), (8, 8), (4, 4), (2, 2)),
    ((23, 31), (12, 16), (6, 8), (1, 3)),
    ((9, 7), (5, 4), (3, 1), (1, 1)),
]
pytestmark = [
    pytest.mark.filterwarnings('ignore:Default ``avg_non_ignore``'),
    pytest.mark.filterwarnings('ignore:When align_corners=True'),
]


def heads(name: str, **kwargs) -> list[BaseDecodeHead]:
    """The package's head and mmsegmentation's, with equal weights, in float64."""
    multiple = dict(in_channels=CHANNELS, in_index=(0, 1, 2, 3))
    cfg = {
        'UPerHead': dict(**multiple, pool_scales=(1, 2, 3, 6)),
        'FPNHead': dict(**multiple, feature_strides=(4, 8, 16, 32)),
        'FCNHead': dict(in_channels=CHANNELS[2], in_index=2, num_convs=1),
    }[name]
    cfg = {
        **cfg,
        'channels': 10,
        'num_classes': 7,
        'dropout_ratio': 0.0,
        'norm_cfg': dict(type='BN'),
        **kwargs,
    }
    ours = MODELS.build(dict(type=f'mmseg_twins.{name}', **cfg)).double()
    theirs = MODELS.build(dict(type=name, **cfg)).double()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return [ours, theirs]


def pyramid(sizes=PYRAMIDS[0]) -> list[Tensor]:
    return [
        torch.randn(2, channels, *size, dtype=torch.float64, requires_grad=True)
        for channels, size in zip(CHANNELS, sizes, strict=False)
    ]


def samples(height: int = 61, width: int = 67, classes: int = 7) -> list[SegDataSample]:
    """Two samples with labels, a third of them to be ignored."""
    labels = torch.randint(0, classes, (2, 1, height, width))
    labels[:, :, ::3] = 255
    return [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('sizes', PYRAMIDS)
def test_uper_heads_logits_and_gradients_are_mmsegmentations(sizes, align_corners):
    results = []
    maps = pyramid(sizes)
    target = torch.randn(2, 7, *sizes[0], dtype=torch.float64)
    for head in heads('UPerHead', align_corners=align_corners):
        logits = head(maps)
        inputs = [*maps, *head.parameters()]
        gradients = torch.autograd.grad((logits * target).sum(), inputs)
        results.append([logits, *gradients])
    torch.testing.assert_close(*(r[0] for r in results), rtol=1e-12, atol=1e-12)
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('levels', [2, 3])
def test_uper_head_takes_any_number_of_levels(levels):
    maps = pyramid()[:levels]
    logits = [
        head(maps)
        for head in heads(
            'UPerHead',
            in_channels=CHANNELS[:levels],
            in_index=tuple(range(levels)),
            pool_scales=(1, 3),
        )
    ]
    torch.testing.assert_close(*logits, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(norm_cfg=None),
        dict(norm_cfg=dict(type='GN', num_groups=2)),
        dict(act_cfg=dict(type='GELU')),
        dict(conv_cfg=dict(type='Conv2dAdaptivePadding')),
    ],
    ids=['no norm', 'GN', 'GELU', 'another convolution'],
)
def test_uper_head_takes_any_layers(kwargs):
    maps = pyramid()
    logits = [head(maps) for head in heads('UPerHead', **kwargs)]
    torch.testing.assert_close(*logits, rtol=1e-12, atol=1e-12)


LOSSES = {
    'plain': dict(type='CrossEntropyLoss', loss_weight=0.4),
    'in a list': [dict(type='CrossEntropyLoss')],
    'non-ignored': dict(type='CrossEntropyLoss', avg_non_ignore=True),
    'named': dict(type='CrossEntropyLoss', loss_name='loss_mine'),
    # What follows takes mmsegmentation's own way.
    'sum': dict(type='CrossEntropyLoss', reduction='sum'),
    'sigmoid': dict(type='CrossEntropyLoss', use_sigmoid=True),
    'two': [
        dict(type='CrossEntropyLoss'),
        dict(type='DiceLoss', loss_name='loss_dice'),
    ],
}


@pytest.mark.parametrize('loss', LOSSES)
@pytest.mark.parametrize('name', ['UPerHead', 'FPNHead', 'FCNHead'])
def test_losses_are_mmsegmentations(name, loss):
    maps, data, results = pyramid(), samples(), []
    for head in heads(name, loss_decode=LOSSES[loss]):
        losses = head.loss_by_feat(head(maps), data)
        inputs = list(head.parameters())
        total = sum(value for key, value in losses.items() if 'loss' in key)
        results.append((losses, torch.autograd.grad(total, inputs, allow_unused=True)))
    ours, theirs = results
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-10, atol=1e-10)


def test_class_weights_are_honoured():
    # mmsegmentation's own averaging fails where a label is ignored, so none is here.
    loss = dict(type='CrossEntropyLoss', class_weight=[1.0, 2, 3, 4, 5, 6, 0])
    maps, data = pyramid(), samples()
    for sample in data:
        sample.gt_sem_seg.data.clamp_(max=6)
    losses = [
        head.loss_by_feat(head(maps), data)
        for head in heads('FCNHead', loss_decode=loss)
    ]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=1e-12)


def test_a_pixel_sampler_takes_mmsegmentations_way():
    maps, data, losses = pyramid(), samples(), []
    for head in heads('FCNHead', sampler=dict(type='OHEMPixelSampler', min_kept=50)):
        torch.manual_seed(0)
        losses.append(head.loss_by_feat(head(maps), data))
    torch.testing.assert_close(*losses, rtol=1e-12, atol=1e-12)


def test_activation_checkpointing_and_autocast_go_together():
    (head, _), maps = heads('UPerHead'), pyramid()
    head.float()
    maps = [x.detach().float().requires_grad_() for x in maps]
    with torch.autocast('cpu', torch.bfloat16):
        logits = torch.utils.checkpoint.checkpoint(head, maps, use_reentrant=False)
    logits.float().sum().backward()
    assert all(x.grad.isfinite().all() and x.grad.any() for x in maps)


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_compiled_output_is_equal():
    (head, _), maps = heads('UPerHead'), pyramid()
    head.eval()
    compiled = torch.compile(head, backend='aot_eager', fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(maps), head(maps), rtol=1e-10, atol=1e-10)


class OfFourMaps(torch.nn.Module):
    """A head with an argument for each map, as ``torch.export`` wants it."""

    def __init__(self, head: BaseDecodeHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, *maps: Tensor) -> Tensor:
        return self.head(maps)


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_exported_output_is_equal():
    (head, _), maps = heads('UPerHead'), tuple(x.detach() for x in pyramid())
    exported = torch.export.export(OfFourMaps(head.eval()), maps).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(*maps), head(maps), rtol=1e-12, atol=1e-12)


def test_bf16_logits_are_as_near_to_float64_as_mmsegmentations():
    ours, theirs = heads('UPerHead', channels=32)
    maps = pyramid()
    with torch.no_grad():
        exact = theirs.eval()(maps)
        errors = []
        for head in (ours, theirs):
            head.eval().float()
            with torch.autocast('cpu', torch.bfloat16):
                errors.append((head([x.float() for x in maps]) - exact).std())
    assert errors[0] < 1.5 * errors[1]
