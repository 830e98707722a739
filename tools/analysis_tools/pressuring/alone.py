"""Runs a function in a process of its own, which may take so much memory and no more.

The process starts without what earlier work has left behind, so that its peak is its
own; and whatever becomes of it, the one that asked goes on.
"""

from __future__ import annotations

import logging
import multiprocessing
import re
import signal
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from benchmarking.models import one_line

OK, ABOVE_LIMIT, OUT_OF_MEMORY, FAILED = 'ok', 'above limit', 'out of memory', 'failed'
# A process that begins from nothing; a copy of this one would have its memory.
START = 'spawn'
# Seconds between two looks at the memory of the process.
INTERVAL = 0.02
# What PyTorch, oneDNN and the C++ library say when they get no memory.
NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|bad_alloc"
)

# Tells the other process something: what kind of thing, and its value.
Tell = Callable[[str, object], None]


@dataclass(frozen=True)
class Ending:
    """How a function in a process of its own has ended.

    Attributes:
        status: ``OK``, ``ABOVE_LIMIT``, ``OUT_OF_MEMORY`` or ``FAILED``.
        value: what it returned, if it is ``OK``.
        message: what went wrong, if it is not.
    """

    status: str
    value: object = None
    message: str = ''


def run_alone(
    function: Callable[..., object],
    *arguments: object,
    max_growth: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Ending:
    """Calls ``function(*arguments, tell)`` in a new process and waits for it.

    Args:
        function: found by its module and name in the new process. It calls
            ``tell('level', bytes)`` with its memory where what counts begins, and
            ``tell('progress', text)`` whenever it likes.
        arguments: those before ``tell``.
        max_growth: bytes above the level, from which on the process is ended; None
            for no limit. Needs Linux.
        progress: gets the texts.
    """
    context = multiprocessing.get_context(START)
    connection, other = context.Pipe()
    process = context.Process(
        target=serve, args=(other, function, arguments), daemon=True
    )
    process.start()
    other.close()
    level = None
    try:
        while True:
            if connection.poll(INTERVAL):
                kind, value = connection.recv()
                if kind == 'level':
                    level = value
                elif kind == 'progress':
                    progress(value)
                else:
                    return value
            elif max_growth is not None and level is not None:
                memory = resident_memory(process.pid)
                if memory is not None and memory - level > max_growth:
                    return above(max_growth)
    except (EOFError, OSError):
        process.join(10)
        return ended(process.exitcode)
    finally:
        connection.close()
        process.kill()
        process.join()


def above(limit: int) -> Ending:
    """The ending of what takes more than the limit, in bytes."""
    return Ending(ABOVE_LIMIT, message=f'more than {limit / 1e6:.0f} MB')


def ended(code: int | None) -> Ending:
    """The ending of a process that has ended by itself."""
    if code == -signal.SIGKILL:  # what Linux sends when there is no memory left
        return Ending(OUT_OF_MEMORY, message='the system ended the process')
    return Ending(FAILED, message=f'the process has ended by itself (exit code {code})')


def serve(
    connection: Connection, function: Callable[..., object], arguments: tuple
) -> None:
    """Calls the function, and sends how it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to end
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)
    try:
        value = function(*arguments, lambda *message: connection.send(message))
        ending = Ending(OK, value)
    except Exception as error:
        ending = Ending(kind_of(error), message=one_line(error))
    connection.send(('end', ending))


def kind_of(error: Exception) -> str:
    """Whether an error is for want of memory, or another."""
    no_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return OUT_OF_MEMORY if no_memory or NO_MEMORY.search(str(error)) else FAILED


def resident_memory(pid: int) -> int | None:
    """Bytes that a process has in memory, or None where the system does not tell."""
    try:
        status = Path(f'/proc/{pid}/status').read_text()
    except OSError:
        return None
    found = re.search(r'^VmRSS:\s+(\d+) kB$', status, re.MULTILINE)
    return 1024 * int(found[1]) if found else None


def available_memory() -> int | None:
    """Bytes that programs can still get, or None where the system does not tell."""
    try:
        text = Path('/proc/meminfo').read_text()
    except OSError:
        return None
    found = re.search(r'^MemAvailable:\s+(\d+) kB$', text, re.MULTILINE)
    return 1024 * int(found[1]) if found else None
