"""Tools of the project run by torchrun in two processes, on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_in_two(tool: str, *arguments: str, folder: Path) -> None:
    """Runs a script of ``tools`` in two processes that share its work.

    Args:
        tool: the script's name, such as ``train.py``.
        arguments: the script's.
        folder: where relative paths begin.

    Raises:
        subprocess.CalledProcessError: It failed; what it wrote is shown by pytest.
    """
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    torchrun += ['--nproc-per-node', '2']
    environment = {**os.environ, 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1'}
    earlier = os.environ.get('PYTHONPATH')
    environment['PYTHONPATH'] = os.pathsep.join(filter(None, (str(ROOT), earlier)))
    environment.pop('LOCAL_RANK', None)
    subprocess.run(
        [*torchrun, str(ROOT / 'tools' / tool), *arguments],
        cwd=folder,
        env=environment,
        check=True,
        timeout=300,
    )
