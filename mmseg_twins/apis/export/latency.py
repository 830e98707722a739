"""How long an exported file and PyTorch take for an image, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

from torch import Tensor

from .checking import Predict

RUNS = 7
# The threads of one library look for work for a while after its run, on cores that the
# other's run would need.
PAUSE_SECONDS = 0.3


def measure(
    implementations: Mapping[str, Predict], image: Tensor, runs: int = RUNS
) -> dict[str, list[float]]:
    """Times implementations in turns, so that all meet the same load of the machine.

    Args:
        implementations: functions of the image, by name; each runs once to warm up.
        image: what they get.
        runs: timed runs of each.

    Returns:
        Seconds of each run, by name.
    """
    seconds = {name: [] for name in implementations}
    for run in range(runs + 1):
        for name, predict in implementations.items():
            time.sleep(PAUSE_SECONDS)
            start = time.perf_counter()
            predict(image)
            if run:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def table(seconds: Mapping[str, list[float]]) -> str:
    """The times, a line each; the ratio is to the last implementation."""
    *_, last = (statistics.median(times) for times in seconds.values())
    lines = [
        f'{"CPU":>12}  {"median ms":>9}  {"fastest":>7}  {"slowest":>7}  {"speed":>5}'
    ]
    for name, times in seconds.items():
        median = statistics.median(times)
        lines.append(
            f'{name:>12}  {1000 * median:9.0f}  {1000 * min(times):7.0f}  '
            f'{1000 * max(times):7.0f}  {last / median:4.2f}x'
        )
    return '\n'.join(lines)
