"""What ``benchmark.py`` runs, and that implementations run the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarking import models
from benchmarking.cases import HEADS, Case
from benchmarking.machine import process_memory
from benchmarking.measurement import BenchmarkError, compare
from benchmarking.models import BUILTIN, PACKAGE
from benchmarking.session import (
    IGNORED,
    NUM_CLASSES,
    Session,
    call,
    count_flops,
    steps_of_turn,
)
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmseg_twins.checkpoints.models import VARIANTS
from mmseg_twins.models.backbones.attention import GSA, LSA
from sessions import small_config, start_session

pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Starts a session of a small implementation in this process."""
    monkeypatch.setattr(models, 'read_config', small_config)
    threads = torch.get_num_threads()

    def make(implementation: str, case: Case, **settings) -> Session:
        return start_session(implementation, case, tmp_path, threads=1, **settings)

    yield make
    torch.set_num_threads(threads)


def case(*args, batch: int = 2, size: tuple[int, int] = (64, 96)) -> Case:
    return Case(*args, batch, *size)


def parameters(session: Session) -> list[torch.Tensor]:
    return [p.detach().clone() for p in session.model.parameters()]


@pytest.mark.parametrize('head', HEADS)
@pytest.mark.parametrize('variant', VARIANTS)
def test_every_model_has_a_config_on_both_sides(variant, head):
    ours, theirs = (
        models.find_config(name, variant, head) for name in (PACKAGE, BUILTIN)
    )
    assert ours != theirs
    for path in (ours, theirs):
        assert f'_{variant}_' in path.name
        assert ('fpn' in path.name) == (head == 'fpn')


def test_the_sides_are_the_packages_and_mmsegmentations(start):
    for name, module in ((PACKAGE, 'mmseg_twins.'), (BUILTIN, 'mmseg.models.')):
        session = start(name, case('svt-s', 'none', 'train', 'fp32'))
        assert type(session.model).__module__.startswith(module)


@pytest.mark.parametrize('dtype', ['fp32', 'bf16', 'fp16'])
@pytest.mark.parametrize('mode', ['inference', 'train'])
@pytest.mark.parametrize('head', HEADS)
@pytest.mark.parametrize('variant', ['pcpvt-s', 'svt-s'])
def test_both_sides_compute_the_same(start, variant, head, mode, dtype):
    one = case(variant, head, mode, dtype)
    ours, theirs = (start(name, one).outputs() for name in (PACKAGE, BUILTIN))
    found = compare(ours, theirs, case=one, name=PACKAGE)
    kinds = ['maps' if head == 'none' else 'logits']
    if mode == 'train':
        kinds += ['gradients'] if head == 'none' else ['loss', 'gradients']
    assert list(found) == kinds


@pytest.mark.parametrize('attention', [LSA, GSA])
def test_a_wrong_attention_is_noticed(start, monkeypatch, attention):
    one = case('svt-s', 'none', 'inference', 'bf16')
    theirs = start(BUILTIN, one).outputs()
    right = attention.forward
    monkeypatch.setattr(attention, 'forward', lambda self, x: right(self, x.flip(1)))
    ours = start(PACKAGE, one).outputs()
    with pytest.raises(BenchmarkError, match='maps of package and built-in differ'):
        compare(ours, theirs, case=one, name=PACKAGE)


def test_a_wrong_gradient_is_noticed(start):
    one = case('svt-s', 'none', 'train', 'fp32')
    theirs = start(BUILTIN, one).outputs()
    session = start(PACKAGE, one)
    block = session.model.layers[0][0]
    block.attn.qkv.weight.register_hook(lambda gradient: 2 * gradient)
    with pytest.raises(BenchmarkError, match='gradients'):
        compare(session.outputs(), theirs, case=one, name=PACKAGE)


def test_comparing_leaves_no_trace(start):
    session = start(PACKAGE, case('svt-s', 'fpn', 'train', 'fp32'))
    before = {k: v.clone() for k, v in session.model.state_dict().items()}
    session.outputs()
    after = session.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(p.grad is None for p in session.model.parameters())
    assert all(module.training for module in session.model.modules())


@pytest.mark.parametrize('head', ['uperhead', 'fpn'])
@pytest.mark.parametrize('implementation', [PACKAGE, BUILTIN])
def test_a_training_step_trains_a_segmentor(start, implementation, head):
    session = start(implementation, case('svt-s', head, 'train', 'fp32'))
    before = parameters(session)
    session.step()
    changed = [
        not torch.equal(a, b) for a, b in zip(before, parameters(session), strict=True)
    ]
    assert sum(changed) > 0.8 * len(changed)  # some units of so few are dead


@pytest.mark.parametrize(
    'one',
    [
        case('svt-s', 'none', 'train', 'fp32'),
        case('svt-s', 'none', 'inference', 'bf16'),
        case('svt-s', 'fpn', 'logits', 'fp32'),
        case('svt-s', 'fpn', 'inference', 'fp32'),
    ],
    ids=lambda one: one.title,
)
def test_other_steps_leave_the_model_as_it_is(start, one):
    session = start(PACKAGE, one)
    before = parameters(session)
    assert session.run() > 0
    assert all(map(torch.equal, before, parameters(session)))
    assert all(p.grad is None for p in session.model.parameters())


@pytest.mark.parametrize('mode', ['inference', 'slide'])
def test_inference_ends_with_a_class_for_each_pixel(start, mode):
    session = start(PACKAGE, case('svt-s', 'fpn', mode, 'fp32', size=(64, 520)))
    windows = []
    session.model.backbone.register_forward_pre_hook(
        lambda _, inputs: windows.append(inputs[0].shape[-1])
    )
    with torch.no_grad():
        samples = session.infer()
    assert [s.pred_sem_seg.data.shape for s in samples] == 2 * [(1, 64, 520)]
    assert windows == ([520] if mode == 'inference' else [512, 512])


def test_logits_are_at_a_quarter_of_the_images_size(start):
    session = start(PACKAGE, case('svt-s', 'fpn', 'logits', 'fp32'))
    with torch.no_grad():
        assert session.infer().shape == (2, NUM_CLASSES, 16, 24)


@pytest.mark.parametrize('inference_mode', [False, True])
def test_inference_runs_in_the_mode_that_is_asked_for(start, inference_mode):
    one = case('svt-s', 'none', 'inference', 'fp32')
    session = start(PACKAGE, one, inference_mode=inference_mode)
    modes = []
    session.model.patch_embeds[0].register_forward_pre_hook(
        lambda *_: modes.append(
            (torch.is_inference_mode_enabled(), torch.is_grad_enabled())
        )
    )
    session.run()
    assert modes == [(inference_mode, False)]


def test_a_run_is_warmed_up_counted_and_measured(start):
    session = start(PACKAGE, case('svt-s', 'none', 'train', 'fp32'))
    assert session.load() == sum(p.numel() for p in parameters(session))
    assert session.warm_up() > 1e6  # operations
    assert session.warm_up() is None
    session.start()
    session.run()
    assert session.peak_memory() is None or session.peak_memory() >= 0


@pytest.mark.parametrize(
    ('seconds', 'steps'), [(1.0, 1), (0.1, 1), (0.03, 4), (1e-5, 50)]
)
def test_a_turn_on_a_gpu_has_steps_enough_to_keep_it_busy(seconds, steps):
    assert steps_of_turn(seconds) == steps


def test_a_run_of_several_steps_gives_the_time_of_one(start, monkeypatch):
    session = start(PACKAGE, case('svt-s', 'none', 'inference', 'fp32'))
    session.steps, times = 4, iter((10.0, 12.0))
    monkeypatch.setattr(session, 'step', lambda: ran.append(1))
    monkeypatch.setattr('benchmarking.session.time.perf_counter', lambda: next(times))
    ran = []
    assert session.run() == 0.5
    assert len(ran) == 4


def test_weights_and_batches_depend_on_the_seed_alone(start):
    one = case('pcpvt-s', 'none', 'train', 'fp32')
    first, second, other = (models.make_weights(one, seed) for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    images = [start(PACKAGE, one, seed=seed).images for seed in (3, 3, 4)]
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_labels_are_classes_some_of_them_ignored(start):
    samples = start(PACKAGE, case('svt-s', 'fpn', 'train', 'fp32')).samples
    labels = torch.stack([sample.gt_sem_seg.data for sample in samples])
    ignored = labels == IGNORED
    assert 0.05 < ignored.float().mean() < 0.15
    assert 0 <= labels[~ignored].min() <= labels[~ignored].max() < NUM_CLASSES


@pytest.mark.skipif(process_memory('VmHWM') is None, reason='needs Linux')
def test_the_peak_of_memory_is_that_of_the_runs(start, monkeypatch):
    session = start(PACKAGE, case('svt-s', 'none', 'inference', 'fp32'))
    megabytes = 2**20

    def peak(before: int, meanwhile: int) -> int:
        def take(size: int) -> None:
            torch.ones(size * megabytes, dtype=torch.uint8)

        monkeypatch.setattr(session, 'step', lambda: take(before))
        session.warm = False
        session.warm_up()
        session.start()
        monkeypatch.setattr(session, 'step', lambda: take(meanwhile))
        session.run()
        return session.peak_memory()

    # Now and then the system counts memory that was given back already.
    assert 90 * megabytes < min(peak(300, 100) for _ in range(3)) < 200 * megabytes


@pytest.mark.parametrize(
    ('error', 'kind'),
    [
        (ValueError('odd\nlong'), RuntimeError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError),
    ],
)
def test_errors_of_a_session_are_one_line(monkeypatch, error, kind):
    monkeypatch.setattr('benchmarking.session.Session', lambda job: 1 / 0)

    def fail(job):
        raise error

    monkeypatch.setattr('benchmarking.session.session', fail)
    with pytest.raises(kind, match=type(error).__name__) as raised:
        call(None, 'run')
    assert '\n' not in str(raised.value)


def test_timms_maps_are_the_packages():
    pytest.importorskip('timm')
    one = case('pcpvt-s', 'none', 'inference', 'fp32', batch=1)
    weights = models.make_weights(one, 0)
    x = torch.randn(1, 3, 64, 96)
    maps = []
    for implementation in (PACKAGE, models.TIMM):
        model, _ = models.build_model(implementation, one)
        models.load_weights(model, weights)
        with torch.no_grad():
            maps.append(list(model.eval()(x)))
    # The norms' epsilon is not the same.
    torch.testing.assert_close(*maps, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('backend', [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
def test_operations_of_attention_are_counted_however_it_is_computed(backend):
    q, k, v = (torch.randn(2, 3, n, 8, requires_grad=True) for n in (20, 30, 30))
    product = 2 * (2 * 3) * 20 * 30 * 8

    def step():
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v)

    assert count_flops(step) == 2 * product
    # The fused backward pass computes the scores again.
    again = backend == SDPBackend.FLASH_ATTENTION
    assert count_flops(lambda: step().sum().backward()) == (6 + again) * product


@pytest.mark.parametrize('groups', [1, 2, 8])
def test_a_convolutions_gradients_cost_as_much_as_two_forward_passes(groups):
    conv = torch.nn.Conv2d(8, 16, 3, stride=2, groups=groups)
    x = torch.randn(2, 8, 11, 11, requires_grad=True)
    forward = 2 * 2 * (5 * 5) * 16 * (8 // groups) * 9
    assert count_flops(lambda: conv(x)) == forward
    assert count_flops(lambda: conv(x).sum().backward()) == 3 * forward
