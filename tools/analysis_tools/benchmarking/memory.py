"""How much memory a piece of work takes at its peak.

On a GPU PyTorch's allocator knows: everything it has handed out, weights included. On
the CPU it is what the process grows by, which Linux records.
"""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

import torch

STATUS = Path('/proc/self/status')
# Writing 5 there sets the peak back to what is in use (Linux, `man 5 proc`).
CLEAR = Path('/proc/self/clear_refs')
KINDS = {
    'cuda': "peak of PyTorch's allocator, weights included",
    'cpu': 'peak of the process above its memory before the first run',
}


class PeakMemory:
    """Peak memory of what runs between :meth:`reset` and :meth:`read`.

    On the CPU it counts from what the process has when this is made, so that
    gradients and an optimizer's state that stay from earlier runs count too.

    Args:
        device: where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        release_unused(device)
        self.level = None if device.type == 'cuda' else process_memory('VmRSS')

    def reset(self) -> None:
        """Forgets earlier peaks."""
        if self.device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        try:
            CLEAR.write_text('5')
        except OSError:
            self.level = None

    def read(self) -> int | None:
        """Bytes at the peak, or None where the system does not tell."""
        if self.device.type == 'cuda':
            return torch.cuda.max_memory_allocated(self.device)
        peak = process_memory('VmHWM')
        if self.level is None or peak is None:
            return None
        return max(peak - self.level, 0)


def process_memory(key: str) -> int | None:
    """A value of this process's status in bytes, or None where there is none."""
    try:
        found = re.search(rf'^{key}:\s+(\d+) kB$', STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return 1024 * int(found.group(1)) if found else None


def release_unused(device: torch.device) -> None:
    """Gives back what earlier work has left behind."""
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.empty_cache()
        return
    try:
        ctypes.CDLL(None).malloc_trim(0)  # glibc keeps freed memory otherwise
    except (AttributeError, OSError, TypeError):
        pass  # another C library
