"""Derivatives of whole models: second ones, per-sample ones, traced and compiled."""

from __future__ import annotations

import pytest
import torch
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from builders import TINY, tiny

both = pytest.mark.parametrize('family', ['PCPVT', 'SVT'])
IMAGE = (2, 3, 36, 64)
# Sees the maps of a tiny backbone.
HEADS = {
    'FCNHead': dict(in_channels=32, in_index=3, num_convs=1),
    'FPNHead': dict(
        in_channels=TINY['embed_dims'],
        in_index=(0, 1, 2, 3),
        feature_strides=(4, 8, 16, 32),
    ),
    'UPerHead': dict(
        in_channels=TINY['embed_dims'], in_index=(0, 1, 2, 3), pool_scales=(1, 2)
    ),
}


def make_head(name):
    cfg = dict(channels=4, num_classes=3, norm_cfg=dict(type='BN'), dropout_ratio=0)
    return MODELS.build(dict(type=f'mmseg_twins.{name}', **HEADS[name], **cfg)).double()


def image():
    return torch.randn(IMAGE, dtype=torch.float64)


def hessian_times(function, x, direction):
    """Return the second derivative by finite differences of the first."""
    steps = []
    for sign in (1, -1):
        moved = (x + sign * 1e-5 * direction).requires_grad_()
        steps.append(torch.autograd.grad(function(moved), moved)[0])
    return (steps[0] - steps[1]) / 2e-5


@pytest.mark.filterwarnings('ignore:Default ``avg_non_ignore``')
@pytest.mark.parametrize('name', HEADS)
def test_the_loss_of_a_segmentor_has_right_second_derivatives(name):
    backbone, head = tiny('SVT', drop_path_rate=0.0).eval(), make_head(name).eval()
    labels = torch.randint(0, 3, (2, 1, *IMAGE[2:]))
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]

    def loss(x):
        return head.loss(backbone(x), samples, None)['loss_ce']

    x, direction = image().requires_grad_(), image()
    (gradient,) = torch.autograd.grad(loss(x), x, create_graph=True)
    (got,) = torch.autograd.grad((gradient * direction).sum(), x)
    expected = hessian_times(loss, x.detach(), direction)
    torch.testing.assert_close(
        got, expected, rtol=1e-4, atol=1e-6 * expected.abs().max()
    )


@both
def test_torch_func_gives_the_gradients_of_autograd(family):
    backbone, x = tiny(family).eval(), image()
    parameters = dict(backbone.named_parameters())

    def loss(parameters, x):
        maps = torch.func.functional_call(backbone, parameters, (x,))
        return sum(feature.sin().sum() for feature in maps)

    got = torch.func.grad(loss)(parameters, x)
    expected = torch.autograd.grad(loss(parameters, x), list(parameters.values()))
    for a, b in zip(got.values(), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@both
def test_vmap_gives_per_sample_gradients(family):
    backbone, x = tiny(family).eval(), image()
    parameters = {k: v.detach() for k, v in backbone.named_parameters()}

    def loss(parameters, x):
        maps = torch.func.functional_call(backbone, parameters, (x[None],))
        return sum(feature.sin().sum() for feature in maps)

    got = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for sample in range(len(x)):
        expected = torch.func.grad(loss)(parameters, x[sample])
        for name, value in expected.items():
            torch.testing.assert_close(got[name][sample], value, rtol=1e-8, atol=1e-9)


@both
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_a_trace_recorded_with_gradients_repeats_the_model(family):
    backbone = tiny(family).eval()
    head = make_head('UPerHead').eval()
    model = torch.nn.Sequential(backbone, head)
    x = image()
    traced = torch.jit.trace(model, x)
    torch.testing.assert_close(traced(x), model(x), rtol=1e-9, atol=1e-10)
