"""Taking turns, and what happens when something fails."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from benchmarking import BenchmarkError, Case, measure
from benchmarking.errors import DisagreementError
from benchmarking.measurement import Settings
from benchmarking.worker import Job, Worker

CASE = Case('svt-s', 'none', 'inference', 'fp32', 1, 64, 64)


class FakeWorker:
    """Answers without computing, and writes down what it was asked for.

    ``failures`` maps a worker's name to the method that fails, ``offsets`` to what
    its outputs are wrong by.
    """

    log: list[tuple[str, str]]
    failures: dict[str, str]
    offsets: dict[str, float]

    def __init__(self, job: Job) -> None:
        self.job = job

    def ask(self, method: str) -> None:
        self.asked = method

    def answer(self) -> object:
        name, method = self.job.name, self.asked
        self.log.append((name, method))
        if self.failures.get(name) == method:
            raise BenchmarkError(f'{name} is broken')
        number = sum(entry == (name, method) for entry in self.log)
        return {
            'outputs': {'maps': [np.ones(3) + self.offsets.get(name, 0)]},
            'warm_up': 1000 if number == 1 and not self.job.compiled else None,
            'start': None,
            'run': float(number),
            'peak_memory': 5,
            'count_parameters': 7,
        }[method]

    def call(self, method: str) -> object:
        self.ask(method)
        return self.answer()

    def close(self) -> None:
        self.log.append((self.job.name, 'close'))


@pytest.fixture
def fake(monkeypatch) -> type[FakeWorker]:
    class Fake(FakeWorker):
        log, failures, offsets = [], {}, {}

    module = 'benchmarking.measurement'
    monkeypatch.setattr(f'{module}.Worker', Fake)
    monkeypatch.setattr(f'{module}.make_weights', lambda case, seed: {})
    return Fake


def run(case: Case = CASE, **settings):
    (result,) = measure([case], Settings(**settings))
    return result


def asked(fake: type[FakeWorker], method: str) -> list[str]:
    return [name for name, asked in fake.log if asked == method]


def test_implementations_take_turns(fake):
    result = run(runs=3, warmup=2)
    assert asked(fake, 'run') == ['package', 'built-in'] * 3
    assert asked(fake, 'warm_up') == ['package', 'built-in'] * 2
    methods = list(dict.fromkeys(method for _, method in fake.log))
    assert methods == [
        'outputs',
        'warm_up',
        'start',
        'run',
        'peak_memory',
        'count_parameters',
        'close',
    ]
    assert [m.name for m in result.measurements] == ['package', 'built-in']
    package = result.get('package')
    assert package.seconds == [1, 2, 3]
    assert (package.peak_memory, package.parameters, package.flops) == (5, 7, 1000)


def test_compiled_rows_have_the_operations_of_the_eager_ones(fake):
    result = run(compile=True)
    assert [m.name for m in result.measurements] == [
        'package', 'built-in', 'package compiled', 'built-in compiled',
    ]  # fmt: skip
    assert {m.flops for m in result.measurements} == {1000}


def test_nothing_is_timed_if_outputs_disagree(fake):
    fake.offsets['package'] = 1e-3
    with pytest.raises(DisagreementError, match=f'{CASE.title}: maps of package and'):
        run()
    assert asked(fake, 'run') == asked(fake, 'warm_up') == []
    assert sorted(asked(fake, 'close')) == ['built-in', 'package']


def test_how_far_outputs_are_apart_is_kept(fake):
    fake.offsets['package'] = 1e-5
    assert run().differences['package']['maps'] == pytest.approx(1e-5, rel=1e-2)


def test_timm_that_disagrees_is_left_out_and_noted(fake):
    case = Case('pcpvt-s', 'none', 'inference', 'fp32', 1, 64, 64)
    fake.offsets['timm'] = 1
    result = run(case, timm=True)
    assert [m.name for m in result.measurements] == ['package', 'built-in']
    assert any('timm was left out' in note for note in result.notes)


def test_timm_is_timed_but_not_compared_where_it_computes_something_else(fake):
    fake.offsets['timm'] = 1
    result = run(timm=True)
    assert [m.name for m in result.measurements][2:] == ['timm']
    assert 'timm' not in result.differences
    assert any('were not compared' in note for note in result.notes)


def test_timm_has_backbones_only(fake):
    case = Case('pcpvt-s', 'fpn', 'inference', 'fp32', 1, 64, 64)
    assert [m.name for m in run(case, timm=True).measurements] == [
        'package', 'built-in',
    ]  # fmt: skip


@pytest.mark.parametrize('method', ['outputs', 'warm_up', 'run'])
def test_a_compiled_row_that_fails_is_left_out_and_noted(fake, method):
    fake.failures['built-in compiled'] = method
    result = run(compile=True)
    assert [m.name for m in result.measurements] == [
        'package', 'built-in', 'package compiled',
    ]  # fmt: skip
    assert result.notes == [
        'built-in compiled was left out: built-in compiled is broken'
    ]


@pytest.mark.parametrize('name', ['package', 'built-in'])
def test_a_measurement_that_is_needed_and_fails_ends_it(fake, name):
    fake.failures[name] = 'run'
    with pytest.raises(BenchmarkError, match=f'{name} is broken'):
        run()
    assert sorted(asked(fake, 'close')) == ['built-in', 'package']


def test_a_comparison_at_another_size_is_noted(fake):
    case = Case('svt-s', 'none', 'inference', 'fp32', 1, 448, 512)
    (note,) = run(case).notes
    assert note.startswith('outputs were compared at 256x320')
    assert run().notes == []


def test_weights_are_made_once_for_a_model(fake, monkeypatch):
    made = []
    monkeypatch.setattr(
        'benchmarking.measurement.make_weights',
        lambda case, seed: made.append((case.variant, case.head)) or {},
    )
    cases = [
        Case(variant, 'none', mode, 'fp32', 1, 64, 64)
        for variant in ('svt-s', 'svt-b')
        for mode in ('inference', 'train')
    ]
    assert len(list(measure(cases, Settings()))) == 4
    assert made == [('svt-s', 'none'), ('svt-b', 'none')]


@pytest.mark.slow
def test_a_worker_tells_of_its_errors_and_of_its_end(tmp_path):
    weights = tmp_path / 'weights.pth'
    torch.save({}, weights)
    worker = Worker(Job('package', CASE, str(weights)))
    try:
        with pytest.raises(BenchmarkError, match='package: the weights do not fit SVT'):
            worker.call('outputs')
        worker.process.kill()
        with pytest.raises(BenchmarkError, match='ended by itself .* want of memory'):
            worker.call('outputs')
    finally:
        worker.close()
    assert not worker.process.is_alive()
