"""Measures a case: implementations take turns, A B A B, after their outputs agree."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarking.agreement import compare
from benchmarking.cases import Case
from benchmarking.errors import BenchmarkError, DisagreementError
from benchmarking.models import BUILTIN, PACKAGE, TIMM, is_same_function, make_weights
from benchmarking.worker import Job, Worker

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """How everything is measured.

    Attributes:
        device: ``'cpu'`` or ``'cuda'``.
        runs: timed runs of each implementation.
        warmup: runs before that, at least 1.
        threads: threads of PyTorch; None for its own choice.
        seed: of weights, images and labels.
        inference_mode: whether inference runs under ``torch.inference_mode`` instead
            of ``torch.no_grad``.
        compile: whether each implementation is measured compiled, too.
        timm: whether timm's backbone is measured beside the others.
    """

    device: str = 'cpu'
    runs: int = 10
    warmup: int = 2
    threads: int | None = None
    seed: int = 0
    inference_mode: bool = False
    compile: bool = False
    timm: bool = False


@dataclass
class Measurement:
    """What was measured of one implementation.

    Attributes:
        name: its name in tables.
        seconds: times of the runs, in their order.
        peak_memory: bytes, or None where the system does not tell.
        parameters: numbers that training changes.
        flops: floating-point operations of one run, or None if they are not known.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    peak_memory: int | None = None
    parameters: int = 0
    flops: int | None = None


@dataclass
class Result:
    """What was measured of a case.

    Attributes:
        case: the case.
        measurements: one for each implementation, the package's first.
        differences: by implementation, how far its outputs are from the built-in's
            (relative RMS, by kind of output).
        notes: sentences that belong to the figures.
    """

    case: Case
    measurements: list[Measurement]
    differences: dict[str, dict[str, float]]
    notes: list[str] = field(default_factory=list)

    def get(self, name: str) -> Measurement:
        """The measurement of an implementation."""
        return next(m for m in self.measurements if m.name == name)


def measure(
    cases: Sequence[Case], settings: Settings, *, progress: Progress = lambda _: None
) -> Iterator[Result]:
    """Measures cases, one after the other.

    Args:
        cases: those of the same model should stand together: its weights are made
            once for them.
        settings: how.
        progress: is told what happens, a line at a time.

    Yields:
        The result of each case.

    Raises:
        DisagreementError: implementations compute different things.
        BenchmarkError: something else cannot be done.
    """
    with tempfile.TemporaryDirectory(prefix='mmseg_twins_benchmark_') as folder:
        path, made_for = Path(folder) / 'weights.pth', None
        for number, case in enumerate(cases, start=1):
            title = f'[{number}/{len(cases)}] {case.title}'
            if made_for != (case.variant, case.head):
                progress(f'{title}: making weights')
                torch.save(make_weights(case, settings.seed), path)
                made_for = (case.variant, case.head)
            yield measure_case(
                case,
                str(path),
                settings,
                progress=lambda text, title=title: progress(f'{title}: {text}'),
            )


def make_jobs(case: Case, weights: str, settings: Settings) -> list[Job]:
    """The jobs of a case, in the order of their turns."""
    names = [PACKAGE, BUILTIN]
    if settings.timm and case.head == 'none':
        names.append(TIMM)
    return [
        Job(
            name,
            case,
            weights,
            device=settings.device,
            threads=settings.threads,
            seed=settings.seed,
            inference_mode=settings.inference_mode,
            compiled=compiled,
        )
        for compiled in ((False, True) if settings.compile else (False,))
        for name in names
    ]


def measure_case(
    case: Case, weights: str, settings: Settings, *, progress: Progress
) -> Result:
    """Measures one case, as :func:`measure` says.

    Args:
        case: what.
        weights: file of the state dict.
        settings: how.
        progress: is told what happens.
    """
    jobs = make_jobs(case, weights, settings)
    notes = []
    with contextlib.ExitStack() as stack:
        workers = []
        for job in jobs:
            worker = Worker(job)
            stack.callback(worker.close)
            workers.append(worker)
        progress('comparing outputs')
        workers, differences = check(case, workers, notes)

        results = {worker.job.name: Measurement(worker.job.name) for worker in workers}
        for run in range(settings.warmup):
            progress(f'warm-up {run + 1} of {settings.warmup}')
            for worker in list(workers):
                with dropping(worker, workers, notes):
                    flops = worker.call('warm_up')
                    if run == 0:
                        results[worker.job.name].flops = flops
        for worker in workers:
            worker.call('start')
        for run in range(settings.runs):
            progress(f'run {run + 1} of {settings.runs}')
            for worker in list(workers):
                with dropping(worker, workers, notes):
                    results[worker.job.name].seconds.append(worker.call('run'))
        measurements = []
        for worker in workers:
            result = results[worker.job.name]
            result.peak_memory = worker.call('peak_memory')
            result.parameters = worker.call('count_parameters')
            if worker.job.compiled:  # compiled code hides what it does
                result.flops = results[worker.job.implementation].flops
            measurements.append(result)
    return Result(case, measurements, differences, notes)


def is_optional(worker: Worker) -> bool:
    """Whether a case makes sense without this one."""
    return worker.job.compiled or worker.job.implementation == TIMM


@contextlib.contextmanager
def dropping(worker: Worker, workers: list[Worker], notes: list[str]) -> Iterator[None]:
    """Takes a worker that fails from ``workers`` and notes why, if it is optional."""
    try:
        yield
    except BenchmarkError as error:
        if not is_optional(worker):
            raise
        workers.remove(worker)
        worker.close()
        notes.append(f'{worker.job.name} was left out: {error}')


def check(
    case: Case, workers: list[Worker], notes: list[str]
) -> tuple[list[Worker], dict[str, dict[str, float]]]:
    """Compares outputs, before anything is timed.

    Args:
        case: what they compute.
        workers: all of them.
        notes: gets what there is to say about it.

    Returns:
        The workers that can be timed, and how far their outputs are from the
        built-in's.

    Raises:
        DisagreementError: the package's outputs are not the built-in's.
    """
    for worker in workers:
        worker.ask('outputs')  # all at once: each loads its model first
    outputs, kept = {}, list(workers)
    for worker in workers:
        with dropping(worker, kept, notes):
            outputs[worker.job.name] = worker.answer()
    differences = {}
    for worker in list(kept):
        name, implementation = worker.job.name, worker.job.implementation
        if name == BUILTIN:
            continue
        if not is_same_function(implementation, case):
            notes.append(
                f'{name} computes something else (SVT without norms after stages and '
                'with padding attended to, or patches cut off at the border), so its '
                'outputs were not compared'
            )
            continue
        ours, theirs = outputs[name], outputs[BUILTIN]
        if implementation == TIMM:  # has its parameters, and so gradients, otherwise
            ours, theirs = {'maps': ours['maps']}, {'maps': theirs['maps']}
        with dropping(worker, kept, notes):
            try:
                differences[name] = compare(
                    ours, theirs, dtype=case.dtype, names=(name, BUILTIN)
                )
            except DisagreementError as error:
                raise DisagreementError(f'{case.title}: {error}') from None
    if case.check_size != (case.height, case.width):
        height, width = case.check_size
        notes.append(
            f'outputs were compared at {height}x{width}: at {case.height}x{case.width} '
            "the built-in's mask is wrong, and it attends to padding"
        )
    return kept, differences
