"""Losses and gradients that are NaN or infinite, and losses that jump."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from builders import ROOT, run_in_two
from mmseg_twins.engine import CheckNumbers
from mmseg_twins.engine.check_numbers import unwrapped
from mmseg_twins.errors import SettingError, TrainingError

WEIGHT = 'backbone.layers.0.0.norm1.weight'
GUARD = 'default_hooks__numbers'
# For processes that import this module.
PATHS = [ROOT, ROOT / 'tests', ROOT / 'tests/engine', ROOT / 'tools/demo']


@HOOKS.register_module(force=True)
class Spoil(Hook):
    """Puts a NaN somewhere at some iterations, and records the training's state."""

    priority = 'HIGHEST'

    def __init__(self, what: str, at: Sequence[int] = (4,), rank: int = 0) -> None:
        self.what, self.at, self.rank = what, at, rank
        SEEN.clear()

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if get_rank() != self.rank:
            return
        SEEN.append((runner, state(runner)))
        if runner.iter + 1 not in self.at:
            return
        if self.what == 'pixel':
            image = data_batch['inputs'][0].float()
            image[0, 0, 0] = math.nan
            data_batch['inputs'][0] = image
        elif self.what == 'labels':
            for sample in data_batch['data_samples']:
                sample.gt_sem_seg.data.fill_(255)
        elif self.what == 'weight':
            with torch.no_grad():
                unwrapped(runner.model).get_parameter(WEIGHT)[0] = math.nan
        else:
            handle = (
                unwrapped(runner.model)
                .get_parameter(WEIGHT)
                .register_hook(
                    lambda gradient: handle.remove() or gradient * float(self.what)
                )
            )


SEEN: list[tuple[Runner, dict[str, Tensor]]] = []


@MODELS.register_module(force=True)
class MeanOfLabeled(nn.Module):
    """A loss that is NaN, with gradients of zero, where nothing is labeled."""

    loss_name = 'loss_labeled'

    def forward(self, logits, label, weight=None, ignore_index=255, **_) -> Tensor:
        losses = functional.cross_entropy(
            logits, label, reduction='none', ignore_index=ignore_index
        )
        return losses[label != ignore_index].mean()


LABELED = dict(
    model__decode_head__loss_decode=dict(_delete_=True, type='MeanOfLabeled')
)


def state(runner: Runner) -> dict[str, Tensor]:
    """Copies of weights, buffers and the optimizer's state."""
    found = dict(runner.model.state_dict())
    moments = runner.optim_wrapper.optimizer.state_dict()['state']
    for number, each in moments.items():
        found |= {f'{number} {name}': value for name, value in each.items()}
    return {name: value.detach().clone() for name, value in found.items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Names of tensors that are new or differ."""
    return {
        name
        for name, value in after.items()
        if name not in before or not torch.equal(before[name], value)
    }


def is_finite(runner: Runner) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in state(runner).values())


@pytest.fixture
def spoil(train):
    """Trains six iterations; something is not finite at some of them."""

    def run(what: str, *at: int, guard: dict | None = None, **settings) -> Runner:
        hook = dict(type='Spoil', what=what, at=at or (4,))
        guard = dict(type='mmseg_twins.CheckNumbers', **(guard or {}))
        return train(custom_hooks=[hook], **{GUARD: guard}, **settings)

    return run


@pytest.mark.parametrize('wrapper', ['OptimWrapper', 'mmseg_twins.BF16OptimWrapper'])
@pytest.mark.parametrize(
    ('what', 'settings', 'facts'),
    [
        (
            'pixel',
            {},
            ['the loss is not finite (loss nan, decode.loss_ce nan, ', 'nor'],
        ),
        (
            'weight',
            {},
            ['the loss is not finite (loss nan, decode.loss_ce nan, ', 'nor'],
        ),
        ('labels', LABELED, ['the loss is not finite (loss nan, decode.loss_labeled']),
        (
            'nan',
            {},
            ['the loss is finite (', 'but the gradients of 1 of ', f'({WEIGHT})'],
        ),
        (
            'inf',
            {},
            ['the loss is finite (', 'but the gradients of 1 of ', f'({WEIGHT})'],
        ),
    ],
)
def test_a_bad_number_ends_the_run_with_its_facts(
    spoil, tmp_path: Path, what: str, settings: dict, facts: list[str], wrapper: str
):
    with pytest.raises(TrainingError) as error:
        spoil(what, optim_wrapper__type=wrapper, **settings)

    message = str(error.value)
    facts = [*facts, 'iteration 4: ', 'learning rate 0.0006', '.jpg', 'iter_2.pth']
    for fact in facts:
        assert fact in message
    assert '\n' not in message
    # The checkpoint that was due is not written, and the last one stays.
    saved = [path.name for path in (tmp_path / 'run').glob('*.pth')]
    assert saved == ['iter_2.pth']


@pytest.mark.parametrize('what', ['pixel', 'nan'])
def test_the_weights_are_as_they_were_before(spoil, what: str):
    with pytest.raises(TrainingError):
        spoil(what)
    runner, before = SEEN[-1]

    assert runner.iter + 1 == 4
    weights = {name for name, _ in runner.model.named_parameters()}
    assert not changed(before, state(runner)) & weights
    assert changed(SEEN[-2][1], before) >= weights


def test_a_batch_is_written_down(spoil, tmp_path: Path):
    with pytest.raises(TrainingError, match=r'iter_4\.json .* --replay 4 repeats'):
        spoil('pixel')

    def fail(constant: str) -> None:
        raise ValueError(constant)

    file = tmp_path / 'run/bad_batches/iter_4.json'
    record = json.loads(file.read_text(), parse_constant=fail)
    assert record['iteration'] == 4
    assert record['seed'] == 0
    assert record['last_checkpoint'].endswith('iter_2.pth')
    (process,) = record['processes']
    assert process['losses']['loss'] == 'nan'
    assert all(Path(file).is_file() for file in process['files'])
    assert len(process['files']) == 2
    assert WEIGHT in process['parameters']


def test_a_record_that_cannot_be_written_does_not_hide_the_reason(
    spoil, tmp_path: Path
):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run/bad_batches').touch()
    with pytest.raises(TrainingError, match=r'loss nan.*could not be written'):
        spoil('pixel')


@pytest.mark.parametrize('what', ['pixel', 'labels', 'nan'])
def test_a_skipped_update_changes_nothing(spoil, what: str):
    runner = spoil(
        what, guard=dict(on_bad='skip'), **(LABELED if what == 'labels' else {})
    )
    states = [each for _, each in SEEN]

    assert runner.iter == 6
    assert not changed(states[3], states[4])
    assert changed(states[2], states[3])
    assert changed(states[4], states[5])
    assert is_finite(runner)


def test_skipping_ends_after_so_many_in_a_row(spoil):
    guard = dict(on_bad='skip', max_skips=2)
    with pytest.raises(TrainingError, match=r'^iteration 5: .*2 updates before it'):
        spoil('nan', 1, 3, 4, 5, guard=guard)


def test_a_good_update_ends_a_row(spoil):
    guard = dict(on_bad='skip', max_skips=2)
    assert spoil('nan', 1, 2, 4, 5, guard=guard).iter == 6


def test_a_bad_batch_skips_the_update_that_it_is_accumulated_for(spoil):
    accumulated = dict(optim_wrapper__accumulative_counts=2)
    runner = spoil('nan', 3, guard=dict(on_bad='skip', max_skips=1), **accumulated)
    states = [each for _, each in SEEN]
    weights = {name for name, _ in runner.model.named_parameters()}

    assert changed(states[0], states[2]) & weights
    assert not changed(states[2], states[4]) & weights
    assert changed(states[4], state(runner)) & weights
    assert is_finite(runner)


def test_the_batch_is_named_among_those_accumulated(spoil):
    with pytest.raises(TrainingError, match='^iteration 3: '):
        spoil('nan', 3, optim_wrapper__accumulative_counts=2)


def guarded(wrapper: OptimWrapper, model: nn.Module, **options) -> CheckNumbers:
    guard = CheckNumbers(**options)
    guard.before_train(SimpleNamespace(optim_wrapper=wrapper, model=model))
    return guard


@pytest.fixture
def scaled(monkeypatch) -> Iterator:
    """Makes a linear model, and mmengine's fp16 wrapper for it, which works on CPUs."""
    from mmengine.optim.optimizer import amp_optimizer_wrapper as module

    monkeypatch.setattr(module, 'is_cuda_available', lambda: True)
    monkeypatch.setattr(module, 'GradScaler', partial(torch.amp.GradScaler, 'cpu'))

    def make(scale: float) -> tuple[nn.Module, OptimWrapper]:
        model = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaling = dict(init_scale=scale, growth_interval=100)
        return model, module.AmpOptimWrapper(optimizer=optimizer, loss_scale=scaling)

    return make


def test_an_overflow_at_a_loss_scale_is_left_to_the_scaler(scaled):
    model, wrapper = scaled(2.0**16)
    guard = guarded(wrapper, model)
    before = model.weight.detach().clone()
    wrapper.update_params(model(torch.tensor([[1e36, 1.0]])).mean())

    assert not guard._found
    assert wrapper.loss_scaler.get_scale() == 2.0**15
    assert torch.equal(model.weight, before)


def test_gradients_that_are_bad_without_scaling_are_no_overflow_of_it(scaled):
    model, wrapper = scaled(1.0)
    guard = guarded(wrapper, model)
    model.weight.register_hook(lambda gradient: gradient * math.nan)
    wrapper.update_params(model(torch.ones(1, 2)).mean())

    assert guard._found
    assert wrapper.loss_scaler.get_scale() == 1.0


def test_a_bad_loss_counts_at_any_scale(scaled):
    model, wrapper = scaled(2.0**16)
    guard = guarded(wrapper, model)
    wrapper.update_params(model(torch.ones(1, 2)).mean() * math.nan)

    assert guard._found
    assert wrapper.loss_scaler.get_scale() == 2.0**16


class NoReading(TorchDispatchMode):
    """Fails where Python asks for a number, for which a GPU would be waited for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ != '_local_scalar_dense'
        return func(*args, **(kwargs or {}))


class OnGPU:
    """What the check returns, as if it were on a GPU."""

    is_cpu = False

    def __init__(self, flag: Tensor) -> None:
        self.flag = flag

    def __bool__(self) -> bool:
        return bool(self.flag)


@pytest.mark.parametrize('on_bad', ['stop', 'skip'])
def test_only_skipping_waits_for_a_gpu_before_the_step(on_bad: str, monkeypatch):
    check = CheckNumbers._check
    monkeypatch.setattr(CheckNumbers, '_check', lambda *args: OnGPU(check(*args)))
    model = nn.Linear(2, 1)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    guard = guarded(wrapper, model, on_bad=on_bad)
    loss = model(torch.ones(1, 2)).mean()
    if on_bad == 'skip':
        with NoReading(), pytest.raises(AssertionError):
            wrapper.update_params(loss)
        return
    with NoReading():
        wrapper.update_params(loss * math.nan)
    guard._read_flag()
    assert guard._found


def test_the_guard_is_taken_out_again():
    model = nn.Linear(2, 1)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    guard = guarded(wrapper, model)
    assert wrapper.step != OptimWrapper.step.__get__(wrapper)

    guard.after_train(SimpleNamespace(optim_wrapper=wrapper))
    for name in ('step', 'backward'):
        assert getattr(wrapper, name) == getattr(OptimWrapper, name).__get__(wrapper)


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (dict(on_bad='ignore'), "on_bad='ignore'; give one of stop, skip"),
        (dict(max_skips=0), 'max_skips=0; give a positive integer'),
        (dict(window=2.5), 'window=2.5; give a positive integer'),
        (dict(spike=-1), 'spike=-1; give a positive number'),
        (dict(spike=math.nan), 'spike=nan; give a positive number'),
    ],
)
def test_arguments_without_a_meaning_are_refused(options: dict, words: str):
    with pytest.raises(SettingError) as error:
        CheckNumbers(**options)
    assert words in str(error.value)


class Losses:
    """Gives a guard one loss after another, and collects its warnings."""

    def __init__(self, **options) -> None:
        self.guard = CheckNumbers(window=20, **options)
        self.hub = MessageHub(f'losses {id(self)}')
        self.warnings: list[str] = []
        self.iter = 0
        sample = SimpleNamespace(metainfo=dict(img_path='images/a.jpg'))
        self.batch = dict(data_samples=[sample])
        rates = dict(lr=[0.01])
        self.runner = SimpleNamespace(
            message_hub=self.hub,
            logger=SimpleNamespace(warning=self.warnings.append),
            optim_wrapper=SimpleNamespace(get_lr=lambda: copy.deepcopy(rates)),
        )

    def add(self, *losses: float) -> None:
        for loss in losses:
            self.hub.update_scalar('train/loss', loss)
            self.runner.iter = self.iter
            outputs = dict(loss=torch.tensor(loss))
            self.guard.after_train_iter(self.runner, 0, self.batch, outputs)
            self.iter += 1


NOISE = [1.0 + 0.1 * math.sin(7 * number) for number in range(20)]


def test_a_spike_is_warned_of_with_its_facts():
    losses = Losses()
    losses.add(*NOISE, 3.5)

    (warning,) = losses.warnings
    for fact in ('iteration 21: ', 'loss 3.5', 'learning rate 0.01', 'images/a.jpg'):
        assert fact in warning


@pytest.mark.parametrize(
    'following', [[1.4], [0.01], [3.5, 3.5, 3.6]], ids=['small', 'fall', 'level']
)
def test_noise_a_fall_and_the_rest_of_a_spike_are_no_further_spikes(following):
    losses = Losses()
    losses.add(*NOISE, *following)
    assert len(losses.warnings) == int(len(following) > 1)


def test_few_losses_make_no_spike():
    losses = Losses()
    losses.add(*NOISE[:19], 3.5)
    assert losses.warnings == []


def test_spikes_can_be_left_out():
    losses = Losses(spike=None)
    losses.add(*NOISE, 3.5)
    assert losses.warnings == []


TWO = """\
_base_ = [{base!r}]
custom_imports = dict(imports=['mmseg_twins', 'test_check_numbers'])
widths = [8, 16, 24, 32]
model = dict(
    backbone=dict(embed_dims=widths),
    neck=dict(in_channels=widths, out_channels=8),
    decode_head=dict(
        in_channels=[8] * 4,
        channels=8,
        loss_decode=dict(_delete_=True, type='MeanOfLabeled'),
    ),
)
dataset = dict(data_root={data!r})
loader = dict(batch_size=1, num_workers=0, persistent_workers=False, dataset=dataset)
train_dataloader = val_dataloader = test_dataloader = loader
train_cfg = dict(max_iters=4, val_interval=100)
default_hooks = dict(checkpoint=dict(interval=2))
custom_hooks = [dict(type='Spoil', what='labels', at=(4,), rank=1)]
"""


@pytest.mark.slow
def test_processes_decide_alike_and_name_the_images_of_the_one_at_fault(
    scenes: Path, tmp_path: Path, monkeypatch, capfd
):
    """Only one has a bad loss, and its gradients, which all share, are finite."""
    base = str(ROOT / 'configs/demo/twins_svt_fpn_streets.py')
    text = TWO.format(base=base, data=str(scenes.absolute()))
    (tmp_path / 'config.py').write_text(text)
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(map(str, PATHS)))
    with pytest.raises(subprocess.CalledProcessError):
        run_in_two('train.py', 'config.py', '--work-dir', 'run', folder=tmp_path)

    errors = [x for x in capfd.readouterr().err.splitlines() if 'error: iteration' in x]
    record = json.loads((tmp_path / 'run/bad_batches/iter_4.json').read_text())
    innocent, guilty = record['processes']
    assert len(errors) == 2
    assert guilty['losses']['loss'] == 'nan'
    assert innocent['losses']['loss'] > 0
    assert all(f'images: {guilty["files"][0]};' in error for error in errors)
    assert not any(innocent['files'][0] in error for error in errors)
    assert [file.name for file in tmp_path.glob('run/*.pth')] == ['iter_2.pth']
