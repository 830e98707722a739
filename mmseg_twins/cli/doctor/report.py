"""Lists what a bug report needs; what cannot be found out is a line that says so."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence

from ...version import __version__
from .checks import Facts, Problem
from .facts import DISTRIBUTIONS, modules_in_use, one_line, torch_module

ATTENTION_KERNELS = {
    'flash': 'FLASH_ATTENTION',
    'memory-efficient': 'EFFICIENT_ATTENTION',
    'cuDNN': 'CUDNN_ATTENTION',
    'math': 'MATH',
}


def describe(facts: Facts) -> dict[str, dict[str, str]]:
    """Lists what a bug report needs, in sections of named lines."""
    probes: dict[str, dict[str, Callable[[], str]]] = {
        'machine': {
            'system': platform.platform,
            'cpu': _cpu,
            'python': lambda: f'{platform.python_version()} ({sys.executable})',
        },
        'packages': {
            'mmseg_twins': lambda: f'{__version__} ({_package_folder()})',
            **{
                name: lambda name=name: facts.versions.get(name, 'not installed')
                for name in DISTRIBUTIONS
                if name in facts.versions or not name.startswith('opencv-')
            },
        },
        'torch': {
            'build': _torch_build,
            'threads': lambda: str(torch_module().get_num_threads()),
            'cpu capability': lambda: torch_module().backends.cpu.get_cpu_capability(),
            **{
                f'attention kernels on {device}': lambda device=device: (
                    _attention_kernels(device)
                )
                for device in facts.forward
            },
        },
        'devices': {
            device: lambda device=device, error=error: (
                f'{_device_name(device)}{error or "a tiny Twins runs"}'
            )
            for device, error in facts.forward.items()
        },
        'compat': {
            'state': lambda: _compat_state(facts),
            "mmcv's ops": _ops,
            'checkpoints': _checkpoints,
            'several processes on the CPU': _cpu_processes,
        },
        'imports': {
            module: lambda module=module: facts.errors.get(module, 'works')
            for module in modules_in_use(facts.versions)
        },
    }
    return {
        section: {label: _attempt(probe) for label, probe in lines.items()}
        for section, lines in probes.items()
    }


def format_report(
    report: Mapping[str, Mapping[str, str]], problems: Sequence[Problem]
) -> str:
    """The report as text, the problems last."""
    width = max(len(label) for lines in report.values() for label in lines) + 2
    text = []
    for section, lines in report.items():
        text.append(section)
        text += [f'  {label:{width}}{value}' for label, value in lines.items()]
    text.append('')
    for problem in problems:
        text.append(f'problem: {problem.says}')
        if problem.command is not None:
            text.append(f'    run: {problem.command}')
    return '\n'.join(text if problems else [*text, 'no problems found'])


def _attempt(probe: Callable[[], str]) -> str:
    try:
        return probe()
    except Exception as error:
        return f'unknown ({one_line(error)})'


def _attention_kernels(device: str) -> str:
    """Which kernels of scaled_dot_product_attention run on a device."""
    torch = torch_module()
    attention = importlib.import_module('torch.nn.attention')
    kind = torch.float32 if device == 'cpu' else torch.float16
    tokens = torch.ones(1, 1, 64, 32, dtype=kind, device=device)
    working = []
    for name, backend in ATTENTION_KERNELS.items():
        try:
            with attention.sdpa_kernel(getattr(attention.SDPBackend, backend)):
                torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        except (AttributeError, RuntimeError):
            continue
        working.append(name)
    return ', '.join(working) or 'none'


def _torch_build() -> str:
    version = torch_module().version
    if version.cuda:
        return f'for CUDA {version.cuda}'
    return f'for ROCm {version.hip}' if getattr(version, 'hip', None) else 'for CPU'


def _cpu() -> str:
    from benchmarking.machine import cpu_name, usable_cores

    return f'{cpu_name()}, {usable_cores()} cores usable'


def _device_name(device: str) -> str:
    if not device.startswith('cuda'):
        return ''
    properties = torch_module().cuda.get_device_properties(device)
    memory = properties.total_memory / 2**30
    capability = f'{properties.major}.{properties.minor}'
    return f'{properties.name}, {memory:.1f} GiB, compute capability {capability}: '


def _compat_state(facts: Facts) -> str:
    if facts.compat_off:
        return 'switched off by MMSEG_TWINS_COMPAT=0'
    return 'off: an import failed' if 'mmseg_twins.compat' in facts.errors else 'on'


def _ops() -> str:
    ops = importlib.import_module('mmseg_twins.compat.ops')
    if ops.has_compiled_ops():
        return 'compiled, left alone'
    standing_in = isinstance(sys.modules.get('mmcv.ops'), ops.StandIn)
    return f'none compiled, {"a" if standing_in else "no"} stand-in for mmcv.ops'


def _checkpoints() -> str:
    history = importlib.import_module('mmengine.logging').HistoryBuffer
    allowed = history in torch_module().serialization.get_safe_globals()
    return f"mmengine's {'load' if allowed else 'do not load'} with weights_only=True"


def _cpu_processes() -> str:
    runner = importlib.import_module('mmengine.runner').Runner
    return 'possible' if hasattr(runner.setup_env, '__wrapped__') else 'not prepared'


def _package_folder() -> str:
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
