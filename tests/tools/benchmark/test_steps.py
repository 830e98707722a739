"""What a run does, and that both sides do it alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarking import Case
from benchmarking.agreement import compare
from benchmarking.errors import DisagreementError
from benchmarking.models import BUILTIN, PACKAGE, make_weights
from benchmarking.steps import (
    IGNORED,
    NUM_CLASSES,
    make_batch,
    make_gradients,
)
from benchmarking.worker import Job, Session

from mmseg_twins.models.backbones.attention import GSA, LSA

pytestmark = [
    pytest.mark.filterwarnings('ignore'),
    pytest.mark.usefixtures('small_models'),
]


@pytest.fixture
def start(tmp_path: Path):
    """Starts a session of an implementation in this process."""

    def make(implementation: str, case: Case, **kwargs) -> Session:
        path = tmp_path / f'{case.variant}_{case.head}.pth'
        if not path.exists():
            torch.save(make_weights(case, 0), path)
        return Session(Job(implementation, case, str(path), **kwargs))

    return make


def parameters(session: Session) -> list[torch.Tensor]:
    return [p.detach().clone() for p in session.model.parameters()]


@pytest.mark.parametrize('dtype', ['fp32', 'bf16', 'fp16'])
@pytest.mark.parametrize('mode', ['inference', 'train'])
@pytest.mark.parametrize('head', ['none', 'uperhead', 'fpn'])
@pytest.mark.parametrize('variant', ['pcpvt-s', 'svt-s'])
def test_both_sides_compute_the_same(start, variant, head, mode, dtype):
    case = Case(variant, head, mode, dtype, 2, 64, 96)
    ours, theirs = (start(name, case).outputs() for name in (PACKAGE, BUILTIN))
    found = compare(ours, theirs, dtype=dtype, names=(PACKAGE, BUILTIN))

    kinds = ['maps' if head == 'none' else 'logits']
    if mode == 'train':
        kinds += ['gradients'] if head == 'none' else ['loss', 'gradients']
    assert list(found) == kinds


@pytest.mark.parametrize('attention', [LSA, GSA])
def test_a_wrong_attention_is_noticed(start, monkeypatch, attention):
    case = Case('svt-s', 'none', 'inference', 'fp32', 1, 64, 96)
    theirs = start(BUILTIN, case).outputs()
    right = attention.forward
    monkeypatch.setattr(attention, 'forward', lambda self, x: right(self, x.flip(1)))
    ours = start(PACKAGE, case).outputs()
    with pytest.raises(DisagreementError):
        compare(ours, theirs, dtype='bf16', names=(PACKAGE, BUILTIN))


def test_a_wrong_gradient_is_noticed(start):
    case = Case('svt-s', 'none', 'train', 'fp32', 1, 64, 96)
    theirs = start(BUILTIN, case).outputs()
    session = start(PACKAGE, case)
    block = session.model.layers[0][0]
    block.attn.qkv.weight.register_hook(lambda gradient: 2 * gradient)
    with pytest.raises(DisagreementError, match='gradients'):
        compare(session.outputs(), theirs, dtype='fp32', names=(PACKAGE, BUILTIN))


def test_comparing_leaves_no_trace(start):
    case = Case('svt-s', 'fpn', 'train', 'fp32', 2, 64, 64)
    session = start(PACKAGE, case)
    before = {k: v.clone() for k, v in session.model.state_dict().items()}
    session.outputs()
    after = session.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(p.grad is None for p in session.model.parameters())
    assert all(module.training for module in session.model.modules())


@pytest.mark.parametrize('head', ['uperhead', 'fpn'])
@pytest.mark.parametrize('implementation', [PACKAGE, BUILTIN])
def test_a_training_step_trains_a_segmentor(start, implementation, head):
    session = start(implementation, Case('svt-s', head, 'train', 'fp32', 2, 64, 64))
    before = parameters(session)
    session.steps.run()
    changed = [
        not torch.equal(a, b) for a, b in zip(before, parameters(session), strict=True)
    ]
    assert sum(changed) > 0.8 * len(changed)  # some units of so few are dead
    assert all(p.isfinite().all() for p in session.model.parameters())


@pytest.mark.parametrize(
    'case',
    [
        Case('svt-s', 'none', 'train', 'fp32', 1, 64, 64),
        Case('svt-s', 'none', 'inference', 'bf16', 1, 64, 64),
        Case('svt-s', 'fpn', 'logits', 'fp32', 1, 64, 64),
        Case('svt-s', 'fpn', 'inference', 'fp32', 1, 64, 64),
    ],
    ids=lambda case: case.title,
)
def test_other_steps_leave_the_model_as_it_is(start, case):
    session = start(PACKAGE, case)
    before = parameters(session)
    assert session.run() > 0
    assert all(map(torch.equal, before, parameters(session)))
    assert all(p.grad is None for p in session.model.parameters())


def test_inference_ends_with_a_class_for_each_pixel(start):
    session = start(PACKAGE, Case('svt-s', 'fpn', 'inference', 'fp32', 2, 64, 96))
    with torch.no_grad():
        samples = session.steps.infer()
    assert [s.pred_sem_seg.data.shape for s in samples] == 2 * [(1, 64, 96)]


def test_logits_are_at_a_quarter_of_the_images_size(start):
    session = start(PACKAGE, Case('svt-s', 'fpn', 'logits', 'fp32', 2, 64, 96))
    with torch.no_grad():
        assert session.steps.infer().shape == (2, NUM_CLASSES, 16, 24)


@pytest.mark.parametrize('inference_mode', [False, True])
def test_inference_runs_in_the_mode_that_is_asked_for(start, inference_mode):
    case = Case('svt-s', 'none', 'inference', 'fp32', 1, 64, 64)
    session = start(PACKAGE, case, inference_mode=inference_mode)
    modes = []
    session.model.patch_embeds[0].register_forward_pre_hook(
        lambda *_: modes.append(
            (torch.is_inference_mode_enabled(), torch.is_grad_enabled())
        )
    )
    session.run()
    assert modes == [(inference_mode, False)]


def test_gradients_of_maps_lie_in_memory_as_the_maps_do():
    maps = [torch.zeros(2, 4, 5, 6), torch.zeros(2, 5, 6, 4).permute(0, 3, 1, 2)]
    gradients = make_gradients(maps, 0)
    assert [g.stride() for g in gradients] == [x.stride() for x in maps]
    again = make_gradients([x.contiguous() for x in maps], 0)
    assert all(map(torch.equal, gradients, again))


def test_a_run_is_warmed_up_counted_and_measured(start):
    session = start(PACKAGE, Case('svt-s', 'none', 'train', 'fp32', 1, 64, 64))
    session.outputs()
    assert session.warm_up() > 1e6  # operations
    assert session.warm_up() is None
    session.start()
    session.run()
    assert session.peak_memory() is None or session.peak_memory() >= 0
    assert session.count_parameters() == sum(p.numel() for p in parameters(session))


def test_labels_are_classes_some_of_them_ignored():
    case = Case('svt-s', 'fpn', 'train', 'fp32', 2, 64, 96)
    images, samples = make_batch(case, torch.device('cpu'), 0)
    labels = torch.stack([sample.gt_sem_seg.data for sample in samples])
    assert images.shape == (2, 3, 64, 96)
    assert labels.shape == (2, 1, 64, 96)
    ignored = labels == IGNORED
    assert 0.05 < ignored.float().mean() < 0.15
    assert 0 <= labels[~ignored].min() <= labels[~ignored].max() < NUM_CLASSES


def test_batches_depend_on_the_seed_alone():
    case = Case('svt-s', 'fpn', 'train', 'fp32', 2, 64, 96)
    batches = [make_batch(case, torch.device('cpu'), seed)[0] for seed in (3, 3, 4)]
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])
