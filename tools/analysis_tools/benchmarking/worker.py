"""A process for each implementation, which runs its steps when it is told to.

Each has its memory to itself, so that its peak is its own, and waits without
computing while another has its turn.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import time
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch

from benchmarking.agreement import Outputs
from benchmarking.cases import Case
from benchmarking.errors import BenchmarkError
from benchmarking.flops import count_flops
from benchmarking.memory import PeakMemory
from benchmarking.models import build_model, count_parameters, load_weights, one_line
from benchmarking.steps import Steps


@dataclass(frozen=True)
class Job:
    """What one process is for.

    Attributes:
        implementation: which model.
        case: what is measured.
        weights: file of the state dict to load.
        device: ``'cpu'`` or ``'cuda'``.
        threads: threads of PyTorch; None for its own choice.
        seed: of images and labels.
        inference_mode: whether inference runs under ``torch.inference_mode``.
        compiled: whether the model runs compiled.
    """

    implementation: str
    case: Case
    weights: str
    device: str = 'cpu'
    threads: int | None = None
    seed: int = 0
    inference_mode: bool = False
    compiled: bool = False

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.implementation + (' compiled' if self.compiled else '')


class Session:
    """A job at work, in the process that calls it.

    Args:
        job: what to do.
    """

    def __init__(self, job: Job) -> None:
        if job.threads is not None:
            torch.set_num_threads(job.threads)
        # As mmsegmentation's default_runtime.py, which every recipe inherits.
        torch.backends.cudnn.benchmark = True
        self.job = job
        self.device = torch.device(job.device)
        torch.manual_seed(job.seed)
        model, cfg = build_model(job.implementation, job.case)
        weights = torch.load(job.weights, weights_only=True, map_location='cpu')
        load_weights(model, weights)
        self.model = model
        self.steps = Steps(
            model.to(self.device),
            job.case,
            device=self.device,
            cfg=cfg,
            seed=job.seed,
            inference_mode=job.inference_mode,
            compiled=job.compiled,
        )
        self.memory: PeakMemory | None = None

    def outputs(self) -> Outputs:
        """Computes what implementations must agree on."""
        return self.steps.outputs()

    def warm_up(self) -> int | None:
        """Runs once; the first time, counts floating-point operations.

        Returns:
            The count, or None where it was not made: later, and of compiled code.
        """
        if self.memory is not None:
            self.steps.run()
            return None
        self.memory = PeakMemory(self.device)
        if self.job.compiled:
            self.steps.run()
            return None
        return count_flops(self.steps.run)

    def start(self) -> None:
        """Ends the warm-up: peak memory counts from now on."""
        self.memory.reset()

    def run(self) -> float:
        """Runs once; returns the seconds that it took."""
        start = time.perf_counter()
        self.steps.run()
        return time.perf_counter() - start

    def count_parameters(self) -> int:
        """Numbers that training changes."""
        return count_parameters(self.model)

    def peak_memory(self) -> int | None:
        """Bytes at the peak since :meth:`start`."""
        return self.memory.read()


def serve(connection: Connection, job: Job) -> None:
    """Does what is asked for through a connection, until it is closed.

    Answers with ``(True, result)``, or ``(False, message)`` after an error.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to end
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)
    session = None
    while True:
        try:
            method, *arguments = connection.recv()
        except EOFError:
            return
        try:
            if session is None:
                session = Session(job)
            answer = (True, getattr(session, method)(*arguments))
        except BenchmarkError as error:
            answer = (False, str(error))
        except Exception as error:
            answer = (False, one_line(error))
        connection.send(answer)


class Worker:
    """A :class:`Session` in a process of its own.

    Args:
        job: what it does.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        context = multiprocessing.get_context('spawn')
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, job))
        self.process.start()
        other.close()

    def ask(self, method: str) -> None:
        """Sends the name of a method of :class:`Session`, without waiting for it."""
        try:
            self.connection.send((method,))
        except OSError:
            raise self.ended() from None

    def answer(self) -> object:
        """Waits for what the method returns.

        Raises:
            BenchmarkError: it failed, or the process has ended.
        """
        try:
            good, value = self.connection.recv()
        except (EOFError, OSError):
            raise self.ended() from None
        if not good:
            raise BenchmarkError(f'{self.job.case.title}: {self.job.name}: {value}')
        return value

    def call(self, method: str) -> object:
        """Runs a method of :class:`Session`; returns what it returns."""
        self.ask(method)
        return self.answer()

    def ended(self) -> BenchmarkError:
        """The error for a process that is no more."""
        self.process.join(10)
        code = self.process.exitcode
        # Negative: the signal that ended it. 9 is what a full machine sends.
        hint = '; it was killed, maybe for want of memory' if code == -9 else ''
        return BenchmarkError(
            f'{self.job.case.title}: the process of {self.job.name} has ended by '
            f'itself (exit code {code}){hint}'
        )

    def close(self) -> None:
        """Ends the process, whatever it does."""
        self.connection.close()
        self.process.terminate()
        self.process.join()
