"""Ctrl-C in the package's programs: one line and exit status 130, no traceback.

Python raises ``KeyboardInterrupt``, which is right while there is something to clean
up. During imports, and in Python code that native code calls, the exception is lost or
ends in a traceback or an abort; there, the process ends at once. This module imports
little itself.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

#: Exit status after Ctrl-C, as in a shell.
STATUS = 130
# Launchers forward signals to processes that have already received them: signals within
# this time, in seconds, count as one.
GRACE = 3.0

Handler = Callable[[int, FrameType | None], object]
_last_raised = -GRACE


def end_at_interrupt() -> None:
    """Let Ctrl-C end this process at once, unless it is ignored or handled already.

    Programs call this before their imports. It does nothing in child processes.
    """
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    processes = sys.modules.get('multiprocessing.process')
    is_child = processes is not None and processes.parent_process() is not None
    if is_default and is_main_thread() and not is_child:
        signal.signal(signal.SIGINT, end)


def run(main: Callable[[], int]) -> int:
    """Run a program; return its exit status, also after Ctrl-C."""
    try:
        with raising():
            return main()
    except KeyboardInterrupt:
        print(f'{program()}: interrupted', file=sys.stderr)
        return STATUS


@contextmanager
def raising() -> Iterator[None]:
    """Let Ctrl-C raise ``KeyboardInterrupt`` again, for code that cleans up."""
    with handled_by(raise_once, instead_of=(end,)):
        yield


@contextmanager
def ending(*unfinished: Path) -> Iterator[None]:
    """Let Ctrl-C end the process at once, for native code that calls Python code.

    Args:
        unfinished: files to remove before that.
    """

    def remove_and_end(number: int, frame: FrameType | None) -> None:
        for path in unfinished:
            with suppress(OSError):
                path.unlink()
        end(number, frame)

    usual = (raise_once, signal.default_int_handler)
    with handled_by(remove_and_end, instead_of=usual):
        yield


@contextmanager
def handled_by(handler: Handler, *, instead_of: tuple[Handler, ...]) -> Iterator[None]:
    """Handle Ctrl-C by a function if one of the given ones handles it now."""
    earlier = signal.getsignal(signal.SIGINT)
    if earlier not in instead_of or not is_main_thread():
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, earlier)


def raise_once(number: int, frame: FrameType | None) -> None:
    """Raise ``KeyboardInterrupt``, once for signals in quick succession."""
    global _last_raised
    now = time.monotonic()
    if now - _last_raised > GRACE:
        _last_raised = now
        raise KeyboardInterrupt


def end(number: int, frame: FrameType | None) -> None:
    """End the process, with one line on stderr."""
    with suppress(Exception):  # the signal may have interrupted a write to it
        sys.stdout.flush()
    os.write(2, f'{program()}: interrupted\n'.encode())
    os._exit(STATUS)


def program() -> str:
    """Return the name of the program that this process runs."""
    name = Path(*sys.argv[:1]).name
    return 'mmseg_twins' if name in ('-m', '__main__.py') else name


def is_main_thread() -> bool:
    """Return whether this is the main thread, which alone may set signal handlers."""
    return threading.current_thread() is threading.main_thread()
