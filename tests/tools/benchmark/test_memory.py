"""The peak of a process's memory."""

from __future__ import annotations

import pytest
import torch
from benchmarking.memory import CLEAR, STATUS, PeakMemory

MB = 2**20
pytestmark = pytest.mark.skipif(
    not (STATUS.exists() and CLEAR.exists()), reason='needs what Linux records'
)


def use(size: int) -> torch.Tensor:
    """Takes memory: what is only reserved does not count."""
    return torch.ones(size, dtype=torch.uint8)


def test_peak_is_what_was_taken_meanwhile():
    # Once in many runs the system counts memory that was given back already.
    assert 290 * MB < min(peak_of(300 * MB, 100 * MB) for _ in range(3)) < 400 * MB


def peak_of(*sizes: int) -> int:
    """What taking memory and giving it back, one size after the other, reads."""
    memory = PeakMemory(torch.device('cpu'))
    memory.reset()
    for size in sizes:
        use(size)
    return memory.read()


def test_earlier_peaks_are_forgotten():
    memory = PeakMemory(torch.device('cpu'))
    use(300 * MB)
    memory.reset()
    use(100 * MB)
    assert 90 * MB < memory.read() < 200 * MB


def test_what_stays_from_before_the_reset_counts():
    memory = PeakMemory(torch.device('cpu'))
    kept = use(200 * MB)
    memory.reset()
    use(100 * MB)
    assert 290 * MB < memory.read() < 400 * MB
    del kept


def test_there_is_no_figure_where_the_system_tells_none(monkeypatch, tmp_path):
    monkeypatch.setattr('benchmarking.memory.STATUS', tmp_path / 'status')
    memory = PeakMemory(torch.device('cpu'))
    memory.reset()
    assert memory.read() is None
