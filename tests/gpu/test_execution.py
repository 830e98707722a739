"""Compiled code, and CUDA graphs, compute what eager code does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from benchmarking.models import PACKAGE
from benchmarking.session import make_batch, make_gradients, make_repeatable
from torch import Tensor

from gpu.precision import PRECISIONS, difference, outputs_of

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings('ignore')]
VARIANTS = ('pcpvt-s', 'svt-s')
HEADS = ('none', 'uperhead', 'fpn')


def compiled(function: Callable, device: torch.device, mode: str) -> Callable:
    """A function compiled without a break; traced only in a rehearsal."""
    options = dict(mode=mode) if device.type == 'cuda' else dict(backend='aot_eager')
    return torch.compile(function, fullgraph=True, dynamic=False, **options)


def replayed(function: Callable[[], list[Tensor]], device: torch.device) -> Callable:
    """A function recorded as a CUDA graph; called again in a rehearsal."""
    if device.type != 'cuda':
        return function
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what is done or kept once is not recorded
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function()

    def replay() -> list[Tensor]:
        graph.replay()
        return outputs

    return replay


def gradients_of(session, forward: Callable) -> list[Tensor]:
    """A backbone's maps, or a segmentor's loss, and the gradients of all parameters.

    They stay in the same memory when the session is used again.
    """
    parameters = [p for p in session.model.parameters() if p.requires_grad]
    if session.case.head == 'none':
        made = list(forward(session.images))
        given = session.gradients = session.gradients or make_gradients(made, 0)
    else:
        losses = forward(session.images, session.samples, mode='loss')
        made, given = [session.model.parse_losses(losses)[0]], None
    found = torch.autograd.grad(made, parameters, given, allow_unused=True)
    return [*made, *(x for x in found if x is not None)]


@pytest.mark.parametrize(
    ('name', 'mode'), [('fp32', 'default'), ('bf16', 'reduce-overhead')]
)
@pytest.mark.parametrize('head', ['none', 'uperhead'])
@pytest.mark.parametrize('variant', VARIANTS)
def test_compiled_inference_is_that_of_eager_code(
    device, start, case, variant, head, name, mode
):
    precision = PRECISIONS[name]
    session = start(PACKAGE, case(variant, head, 'inference', 'fp32'))
    function = compiled(session.model.forward, device, mode)
    with torch.no_grad(), precision.active(device):
        found = [outputs_of(function, session.images) for _ in range(3)][-1]
        expected = outputs_of(session.model, session.images)
    assert difference(found, expected) < precision.tolerance


@pytest.mark.parametrize('name', ['fp32', 'bf16'])
@pytest.mark.parametrize('variant', VARIANTS)
def test_compiled_gradients_are_those_of_eager_code(device, start, case, variant, name):
    precision = PRECISIONS[name]
    session = start(PACKAGE, case(variant, 'none', 'train', 'fp32'))
    make_repeatable(session.model)
    function = compiled(session.model.forward, device, 'default')
    with precision.active(device):
        found = gradients_of(session, function)
        expected = gradients_of(session, session.model)
    assert difference(found[:4], expected[:4]) < precision.tolerance
    together = [torch.cat([x.flatten() for x in y[4:]]) for y in (found, expected)]
    assert difference([together[0]], [together[1]]) < 4 * precision.tolerance


@pytest.mark.parametrize('name', ['fp32', 'bf16'])
@pytest.mark.parametrize('head', HEADS)
@pytest.mark.parametrize('variant', VARIANTS)
def test_a_cuda_graph_repeats_inference(device, start, case, variant, head, name):
    precision = PRECISIONS[name]
    one = case(variant, head, 'inference', 'fp32')
    session = start(PACKAGE, one)
    other, _ = make_batch(one, device, seed=1)
    with torch.no_grad(), precision.active(device):
        expected = outputs_of(session.model, other)
        replay = replayed(lambda: outputs_of(session.model, session.images), device)
        session.images.copy_(other)
        found = replay()
    assert difference(found, expected) < precision.tolerance


@pytest.mark.parametrize('name', ['fp32', 'bf16'])
@pytest.mark.parametrize('head', HEADS)
@pytest.mark.parametrize('variant', VARIANTS)
def test_a_cuda_graph_repeats_a_training_step(device, start, case, variant, head, name):
    precision = PRECISIONS[name]
    one = case(variant, head, 'train', 'fp32')
    session = start(PACKAGE, one)
    make_repeatable(session.model)
    other, samples = make_batch(one, device, seed=1)
    with precision.active(device):
        replay = replayed(lambda: gradients_of(session, session.model), device)
        session.images.copy_(other)
        for mine, sample in zip(session.samples, samples, strict=True):
            mine.gt_sem_seg.data.copy_(sample.gt_sem_seg.data)
        found = [x.clone() for x in replay()]
        expected = gradients_of(session, session.model)
    vectors = [torch.cat([x.flatten() for x in y]) for y in (found, expected)]
    assert difference([vectors[0]], [vectors[1]]) < 4 * precision.tolerance


@pytest.mark.parametrize('variant', VARIANTS)
def test_a_graphed_backbone_trains_as_an_eager_one(device, start, case, variant):
    precision = PRECISIONS['fp32']
    session = start(PACKAGE, case(variant, 'none', 'train', 'fp32'))
    make_repeatable(session.model)
    with precision.active(device):
        expected = gradients_of(session, session.model)
        if device.type == 'cuda':
            sample = (torch.randn_like(session.images),)
            torch.cuda.make_graphed_callables(session.model, sample)
        found = gradients_of(session, session.model)
    vectors = [torch.cat([x.flatten() for x in y]) for y in (found, expected)]
    assert difference([vectors[0]], [vectors[1]]) < 4 * precision.tolerance
