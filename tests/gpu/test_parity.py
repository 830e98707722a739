"""A GPU computes what the CPU computes in float64, and what the official code does."""

from __future__ import annotations

import pytest
import torch
from benchmarking.measurement import compare
from benchmarking.models import BUILTIN, PACKAGE

from builders import (
    FAMILIES,
    deterministic_image,
    deterministic_state,
    recorded_features,
    sampled,
)
from gpu.precision import PRECISIONS, difference, outputs_of
from mmseg_twins import ops
from mmseg_twins.checkpoints.models import ARCHS, VARIANTS

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings('ignore')]
SMALL = ('pcpvt-s', 'svt-s')


@pytest.mark.parametrize('name', ['float64', 'fp32', 'bf16'])
@pytest.mark.parametrize('variant', VARIANTS)
def test_features_are_the_official_codes(device, variant, name):
    precision = PRECISIONS[name]
    family, size = variant.split('-')
    backbone = FAMILIES[family.upper()](arch=ARCHS[size]).double().eval()
    backbone.load_state_dict(deterministic_state(backbone.state_dict()))
    backbone.to(device, precision.dtype)
    image = deterministic_image(256, 320).to(device, precision.dtype)

    with torch.no_grad(), precision.active(device):
        maps = [sampled(x.cpu()) for x in backbone(image)]

    recorded = [
        torch.tensor(stage['values'], dtype=torch.float64)
        for stage in recorded_features(variant, 256, 320)
    ]
    assert difference(maps, recorded) < precision.tolerance


@pytest.fixture(scope='module')
def kept() -> dict[tuple[str, str], list[torch.Tensor]]:
    """Outputs in float64 on the CPU, by variant and head."""
    return {}


@pytest.mark.parametrize(
    ('name', 'layout'),
    [
        *((name, torch.contiguous_format) for name in PRECISIONS),
        *((name, torch.channels_last) for name in ('fp32', 'bf16')),
    ],
)
@pytest.mark.parametrize('head', ['none', 'uperhead', 'fpn'])
@pytest.mark.parametrize('variant', SMALL)
def test_outputs_are_those_of_float64(
    device, start, case, kept, variant, head, layout, name
):
    precision = PRECISIONS[name]
    one = case(variant, head, 'inference', 'fp32')
    session = start(PACKAGE, one)
    model = session.model.to(device, precision.dtype, memory_format=layout)
    images = session.images.to(device, precision.dtype, memory_format=layout)

    with torch.no_grad():
        if (variant, head) not in kept:
            exact = start(PACKAGE, one, exact=True)
            kept[variant, head] = outputs_of(exact.model, exact.images)
        with precision.active(device):
            found = outputs_of(model, images)

    assert difference(found, kept[variant, head]) < precision.tolerance


@pytest.mark.parametrize('dtype', ['fp32', 'fp16', 'bf16'])
@pytest.mark.parametrize('head', ['none', 'uperhead', 'fpn'])
@pytest.mark.parametrize('variant', SMALL)
def test_loss_and_gradients_are_the_builtins(start, case, variant, head, dtype):
    one = case(variant, head, 'train', dtype)
    ours, theirs = (start(name, one).outputs() for name in (PACKAGE, BUILTIN))
    assert 'gradients' in compare(ours, theirs, case=one, name=PACKAGE)


@pytest.mark.parametrize('mode', ['inference', 'slide'])
@pytest.mark.parametrize('variant', SMALL)
def test_labels_are_the_cpus(start, case, variant, mode):
    one = case(variant, 'fpn', mode, 'fp32', batch=1, size=(768, 2560))
    exact, session = start(PACKAGE, one, exact=True), start(PACKAGE, one)
    session.model.double()
    session.images = session.images.double()

    labels = []
    for each in (exact, session):
        with torch.no_grad():
            (sample,) = each.infer()
        labels.append(sample.pred_sem_seg.data.cpu())

    assert (labels[0] != labels[1]).double().mean() < 1e-5  # ties up to rounding
    assert len(labels[0].unique()) > 3


def pyramid(dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
    torch.manual_seed(0)
    maps = [torch.randn(2, 64, side, side).to(device, dtype) for side in (64, 32, 16)]
    weight = torch.randn(64, 192, 3, 3).to(device, dtype)
    return [x.requires_grad_() for x in (weight, *maps)]


def convolved(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    weight, *maps = inputs
    with ops.use('portable'):
        out = ops.pyramid_conv3x3(maps, weight, None, False)
    return [out, *torch.autograd.grad(out.sin().sum(), inputs)]


@pytest.mark.parametrize('convolutions', [False, True])
def test_rewritten_convolutions_have_the_precision_of_convolutions(
    device, convolutions
):
    expected = convolved(pyramid(torch.float64, device))
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.backends.cuda.matmul.allow_tf32 = not convolutions

    found = difference(convolved(pyramid(torch.float32, device)), expected)

    assert found < (2e-2 if convolutions else 1e-5)
    has_tf32 = device.type == 'cuda' and torch.cuda.get_device_capability() >= (8, 0)
    assert not convolutions or not has_tf32 or found > 1e-5
