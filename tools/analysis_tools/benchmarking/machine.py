"""The machine: its description, its speed, and the memory of a process."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

import torch
from mmengine.utils.dl_utils import collect_env
from torch.utils.benchmark import Timer

from mmseg_twins.version import __version__

PACKAGES = (
    *('mmcv', 'mmcv-lite', 'mmengine', 'mmsegmentation'),
    *('onedl-mmcv', 'onedl-mmengine', 'onedl-mmsegmentation'),
    'timm',
)
PROC = Path('/proc')
DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}


def describe_machine(device: torch.device, threads: int | None) -> dict:
    """Return the properties of machine and software that results depend on."""
    description = {
        'cpu': cpu_name(),
        'cores': usable_cores(),
        'threads': threads or torch.get_num_threads(),
        'system': platform.platform(),
        'device': device.type,
        'ops': os.environ.get('MMSEG_TWINS_OPS', 'auto'),
        'environment': {k: str(v) for k, v in collect_env().items()},
    }
    if device.type == 'cuda':
        properties = torch.cuda.get_device_properties(device)
        description |= {
            'gpu': properties.name,
            'gpu_memory_bytes': properties.total_memory,
            'capability': f'{properties.major}.{properties.minor}',
            'driver': driver_version(),
            'cudnn': torch.backends.cudnn.version(),
            'matmul_tf32': torch.backends.cuda.matmul.allow_tf32,
            'convolution_tf32': torch.backends.cudnn.allow_tf32,
        }
    versions = {
        'python': platform.python_version(),
        'mmseg_twins': __version__,
        'torch': torch.__version__,  # includes the CUDA version
    }
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return description | {'versions': versions}


def driver_version() -> str:
    """Return the version of the NVIDIA driver, or 'unknown'."""
    command = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return 'unknown'
    return next(iter(done.stdout.split()), 'unknown')


def cpu_name() -> str:
    """Return the name of the CPU's model."""
    try:
        found = re.search(r'model name\s*:\s*(.+)', (PROC / 'cpuinfo').read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def measure_gemm_peak(
    dtype: str, device: torch.device, *, size: int | None = None, seconds: float = 1.0
) -> float:
    """Return the speed of a large square matrix product, in FLOP per second.

    Args:
        dtype: a key of ``DTYPES``.
        size: side of the matrices; None for one that suits the device.
        seconds: time to spend.
    """
    size = size or (8192 if device.type == 'cuda' else 2048)
    a, b = torch.randn(2, size, size, device=device).to(DTYPES[dtype])
    timer = Timer('a @ b', globals=dict(a=a, b=b), num_threads=torch.get_num_threads())
    return 2 * size**3 / min(timer.blocked_autorange(min_run_time=seconds).times)


def process_memory(key: str, pid: int | str = 'self') -> int | None:
    """Return bytes of a process's ``VmRSS`` or ``VmHWM`` (Linux), else None."""
    return read_kilobytes(PROC / str(pid) / 'status', key)


def available_memory() -> int | None:
    """Return the bytes of memory that are available (Linux), else None."""
    return read_kilobytes(PROC / 'meminfo', 'MemAvailable')


def read_kilobytes(path: Path, key: str) -> int | None:
    """Return bytes of a line such as ``VmRSS: 12 kB``, or None without one."""
    try:
        found = re.search(rf'^{key}:\s+(\d+) kB$', path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return 1024 * int(found[1]) if found else None


def reset_peak_memory() -> bool:
    """Reset ``VmHWM`` to the current usage; return whether the system supports it."""
    try:
        (PROC / 'self/clear_refs').write_text('5')  # Linux, `man 5 proc`
    except OSError:
        return False
    return True
