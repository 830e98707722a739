"""Measure cases: compare outputs, then time the implementations in turns, A B A B."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from benchmarking import session
from benchmarking.cases import Case, Settings
from benchmarking.machine import process_memory
from benchmarking.models import (
    BUILTIN,
    TIMM,
    make_weights,
    timm_is_same,
)
from benchmarking.session import Job, Outputs

# Allowed relative difference (RMS of the difference, over RMS) of maps, logits and
# loss. fp32 rounds to 6e-8, fp16 to 5e-4, bf16 to 4e-3, and dozens of layers add up.
TOLERANCES = {'fp32': 1e-4, 'fp16': 1e-2, 'bf16': 5e-2}
# Gradients pass through all layers twice.
GRADIENT_FACTOR = 4
WATCH = 0.1  # seconds between checks of a process's memory

Progress = Callable[[str], None]


class BenchmarkError(RuntimeError):
    """Something cannot be measured or compared; the message is one sentence."""


@dataclass
class Measurement:
    """The measurement of one implementation.

    Attributes:
        name: its name in tables.
        seconds: times of the runs, in order; empty if it ran out of memory.
        peak_memory: bytes; None if unknown.
        parameters: number of trainable parameters.
        flops: floating-point operations of one run; None if unknown.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    peak_memory: int | None = None
    parameters: int = 0
    flops: int | None = None


@dataclass
class Result:
    """The measurements of a case.

    Attributes:
        measurements: one for each implementation, in the order of their turns.
        differences: for each implementation, the difference of its outputs from the
            built-in's (relative RMS, by kind of output).
        notes: remarks on the results.
    """

    case: Case
    measurements: list[Measurement] = field(default_factory=list)
    differences: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def builtin(self) -> Measurement | None:
        """The built-in's measurement, if it was measured."""
        found = [m for m in self.measurements if m.name == BUILTIN and m.seconds]
        return found[0] if found else None


class Worker:
    """A :class:`~.session.Session` in a process of its own.

    So its peak of memory can be measured, and it does not use the CPU while others have
    their turns.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.level: int | None = None  # bytes, with the model loaded
        self.pool = ProcessPoolExecutor(
            1,
            mp_context=multiprocessing.get_context('spawn'),
            initializer=session.begin,
        )
        others = multiprocessing.active_children()
        self.loading = self.submit('load')  # at the same time as others
        (self.process,) = set(multiprocessing.active_children()).difference(others)

    def submit(self, method: str) -> Future:
        """Submit the call of a method of the session."""
        return self.pool.submit(session.call, self.job, method)

    def call(self, method: str) -> object:
        """Call a method of the session; return what it returns.

        Raises:
            MemoryError: it exceeds the available or the allowed memory.
            BenchmarkError: it failed, or the process has ended.
        """
        if method == 'load':
            future = self.loading
            wait([future])
            self.level = process_memory('VmRSS', self.process.pid)
        else:
            future = self.submit(method)
        limit = self.job.settings.max_memory
        while not wait([future], WATCH).done:
            memory = process_memory('VmRSS', self.process.pid)
            if limit and memory and self.level and memory - self.level > limit:
                raise MemoryError(f'more than {limit / 1e6:,.0f} MB')
        try:
            return future.result()
        except BrokenProcessPool:
            self.process.join(10)
            code = self.process.exitcode
            if code == -signal.SIGKILL:  # Linux sends it if memory is exhausted
                raise MemoryError('the system killed the process') from None
            message = f'the process has ended (exit code {code})'
        except RuntimeError as error:
            message = str(error)
        raise BenchmarkError(f'{self.job.case.title}: {self.job.name}: {message}')

    def close(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.pool.shutdown()


def measure(
    cases: Sequence[Case], settings: Settings, *, progress: Progress = lambda _: None
) -> Iterator[Result]:
    """Measure cases, one after the other.

    Args:
        cases: the cases, grouped by model, so that weights are made once for each.
        progress: a function that is called with lines about the progress.

    Yields:
        The result of each case.

    Raises:
        BenchmarkError: the outputs of implementations differ, or one fails.
    """
    with tempfile.TemporaryDirectory(prefix='mmseg_twins_benchmark_') as folder:
        path, made_for = Path(folder) / 'weights.pth', None
        for number, case in enumerate(cases, start=1):
            title = f'[{number}/{len(cases)}] {case.title}'
            progress(title)
            if made_for != (case.variant, case.head):
                torch.save(make_weights(case, settings.seed), path)
                made_for = (case.variant, case.head)
            yield measure_case(
                case,
                make_jobs(case, str(path), settings),
                settings,
                progress=lambda text, title=title: progress(f'{title}: {text}'),
            )


def make_jobs(case: Case, weights: str, settings: Settings) -> list[Job]:
    """Return the jobs of a case, in the order of their turns."""
    return [
        Job(name, case, weights, settings, compiled)
        for compiled in ((False, True) if settings.compile else (False,))
        for name in settings.implementations
        if name != TIMM or case.head == 'none'
    ]


def measure_case(
    case: Case, jobs: Sequence[Job], settings: Settings, *, progress: Progress
) -> Result:
    """Measure one case, as :func:`measure` describes."""
    result = Result(case, [Measurement(job.name) for job in jobs])
    workers: dict[str, Worker] = {}  # without those that ran out of memory
    with contextlib.ExitStack() as stack:
        for job in jobs:
            workers[job.name] = Worker(job)
            stack.callback(workers[job.name].close)

        for measurement, parameters in in_turn('load', workers, result):
            measurement.parameters = parameters
        if len(jobs) > 1:
            progress('comparing outputs')
            turns = in_turn('outputs', workers, result)
            check({measurement.name: outputs for measurement, outputs in turns}, result)
        for run in range(settings.warmup):
            progress(f'warm-up {run + 1} of {settings.warmup}')
            for measurement, flops in in_turn('warm_up', workers, result):
                measurement.flops = flops or measurement.flops
        list(in_turn('start', workers, result))
        for run in range(settings.runs):
            progress(f'run {run + 1} of {settings.runs}')
            for measurement, seconds in in_turn('run', workers, result):
                measurement.seconds.append(seconds)
        for measurement, peak in in_turn('peak_memory', workers, result):
            measurement.peak_memory = peak
    return result


def in_turn(
    method: str, workers: dict[str, Worker], result: Result
) -> Iterator[tuple[Measurement, object]]:
    """Call a method of each worker's session, one after the other; yield the results.

    Workers that run out of memory are removed from the dict, with a note.
    """
    for measurement in result.measurements:
        if measurement.name not in workers:
            continue
        try:
            value = workers[measurement.name].call(method)
        except MemoryError as error:
            result.notes.append(f'{measurement.name}: out of memory ({error})')
            workers.pop(measurement.name).close()
            measurement.seconds.clear()
        else:
            yield measurement, value


def check(outputs: dict[str, Outputs], result: Result) -> None:
    """Compare outputs with the built-in's, before anything is timed.

    Args:
        outputs: outputs by the names of the measurements.
        result: gets the differences and notes.

    Raises:
        BenchmarkError: they disagree.
    """
    case = result.case
    theirs = outputs.pop(BUILTIN, None)
    if theirs is None:
        result.notes.append('outputs were not compared: the built-in was not run')
        return
    for name, ours in outputs.items():
        if name.startswith(TIMM) and not timm_is_same(case):
            result.notes.append(
                f'outputs of {name} were not compared, because it differs (no norms '
                'after the stages of SVT, attention to padding, or incomplete patches '
                'dropped at the border)'
            )
            continue
        if name.startswith(TIMM):  # its parameters, and so its gradients, differ
            ours = {'maps': ours['maps']}
        result.differences[name] = compare(ours, theirs, case=case, name=name)
    checked = case.at_check_size()
    if checked != case:
        result.notes.append(
            f'outputs were compared at {checked.height}x{checked.width}'
            + ('' if case.mode == 'slide' else ', as the built-in attends to padding')
        )


def compare(
    ours: Outputs, theirs: Outputs, *, case: Case, name: str
) -> dict[str, float]:
    """Return the largest relative difference of each kind of output in ``ours``.

    Maps are compared one by one, but gradients together, because some are 0 up to
    rounding.

    Raises:
        BenchmarkError: a difference is larger than allowed.
    """
    differences = {}
    for kind, outputs in ours.items():
        allowed = TOLERANCES[case.dtype]
        if kind == 'gradients':
            allowed *= GRADIENT_FACTOR
            found = relative_difference(outputs, theirs[kind])
        else:
            pairs = zip(outputs, theirs[kind], strict=True)
            found = max(relative_difference([x], [y]) for x, y in pairs)
        if not found <= allowed:
            raise BenchmarkError(
                f'{case.title}: {kind} of {name} and {BUILTIN} differ by {found:.1e} '
                f'(relative RMS), but {allowed:.0e} is allowed in {case.dtype}; '
                'nothing was timed'
            )
        differences[kind] = found
    return differences


def relative_difference(
    ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]
) -> float:
    """Return the RMS of the difference over the RMS of ``theirs``, for all arrays.

    It is infinite if shapes differ, ``theirs`` is 0, or a number is not finite.
    """
    if [x.shape for x in ours] != [y.shape for y in theirs]:
        return math.inf
    difference = total = 0.0
    for x, y in zip(ours, theirs, strict=True):
        difference += float(np.square(x.astype(np.float64) - y).sum())
        total += float(np.square(y.astype(np.float64)).sum())
    ratio = math.sqrt(difference / total) if total else math.inf
    return ratio if math.isfinite(ratio) else math.inf
