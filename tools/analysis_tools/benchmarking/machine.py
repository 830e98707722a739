"""The machine that figures are measured on, and how fast it multiplies."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from pathlib import Path

import torch

from benchmarking.steps import AUTOCAST
from mmseg_twins.version import __version__

PACKAGES = ('torch', 'mmcv', 'mmcv-lite', 'mmengine', 'mmsegmentation', 'timm')
SECONDS_FOR_PEAK = 2.0


def describe_machine(device: torch.device, threads: int | None) -> dict:
    """What figures depend on.

    Args:
        device: where is measured.
        threads: threads of PyTorch; None for its own choice.

    Returns:
        Plain values, by name.
    """
    description = {
        'cpu': cpu_name(),
        'cores': usable_cores(),
        'threads': threads or torch.get_num_threads(),
        'system': platform.platform(),
        'device': device.type,
    }
    if device.type == 'cuda':
        properties = torch.cuda.get_device_properties(device)
        description |= {
            'gpu': properties.name,
            'gpu_memory_bytes': properties.total_memory,
            'cuda': torch.version.cuda,
            'cudnn': torch.backends.cudnn.version(),
            'matmul_tf32': torch.backends.cuda.matmul.allow_tf32,
            'convolution_tf32': torch.backends.cudnn.allow_tf32,
        }
    versions = {'python': platform.python_version(), 'mmseg_twins': __version__}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    versions['torch'] = torch.__version__  # says for which CUDA it is built
    return description | {'versions': versions}


def cpu_name() -> str:
    """The CPU's model, as the system calls it."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith('model name'):
            return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_of_others() -> float:
    """Programs that compute right now, on average; 0 where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, 'getloadavg') else 0.0


def measure_gemm_peak(
    dtype: str,
    device: torch.device,
    *,
    size: int | None = None,
    seconds: float = SECONDS_FOR_PEAK,
) -> float:
    """The speed of a large square matrix product, the best of several.

    Args:
        dtype: a key of ``AUTOCAST``.
        device: where.
        size: side of the matrices; None for one that suits the device.
        seconds: time to spend.

    Returns:
        Floating-point operations per second.
    """
    size = size or (8192 if device.type == 'cuda' else 2048)
    kind = AUTOCAST[dtype] or torch.float32
    a, b = torch.randn(2, size, size, device=device).to(kind)
    best, end = float('inf'), time.perf_counter() + seconds
    for run in range(1000):
        start = time.perf_counter()
        torch.mm(a, b)
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        if run:  # the first one warms up
            best = min(best, time.perf_counter() - start)
        if run > 2 and time.perf_counter() > end:
            break
    return 2 * size**3 / best
