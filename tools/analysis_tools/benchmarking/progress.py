"""What a measurement shows while it runs, and how it is ended early."""

from __future__ import annotations

import shutil
import sys
from types import FrameType


class Progress:
    """What happens, on stderr: one line that changes on a terminal, else many."""

    def __init__(self) -> None:
        self.overwrites = sys.stderr.isatty()
        self.width = 0

    def __call__(self, text: str) -> None:
        """Shows a line."""
        if not self.overwrites:
            print(text, file=sys.stderr, flush=True)
            return
        text = text[: shutil.get_terminal_size().columns - 1]
        print(f'\r{text:<{self.width}}', end='', file=sys.stderr, flush=True)
        self.width = len(text)

    def close(self) -> None:
        """Ends the changing line."""
        if self.width:
            print(f'\r{"":<{self.width}}\r', end='', file=sys.stderr, flush=True)
            self.width = 0


def interrupt(number: int, frame: FrameType | None) -> None:
    """Ends the process in order: its processes end, and the weights are removed."""
    raise KeyboardInterrupt(number)
