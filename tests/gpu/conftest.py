"""What tests on a GPU share.

They run by ``pytest -m gpu`` where PyTorch finds a GPU, on models of full width. With
``--gpu-tests-on-cpu`` they run on the CPU, on small ones, as a rehearsal: what has no
meaning there (a GPU's memory, CUDA graphs, waiting for it) is done and not judged.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from benchmarking import models
from benchmarking.cases import Case
from benchmarking.session import Session

from sessions import small_config, start_session

# cuBLAS repeats its results with this alone, and PyTorch reads it once.
os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')


@pytest.fixture(scope='session')
def device(request: pytest.FixtureRequest) -> torch.device:
    """The GPU, or the CPU in a rehearsal."""
    if request.config.getoption('--gpu-tests-on-cpu'):
        return torch.device('cpu')
    if not torch.cuda.is_available():
        pytest.skip('PyTorch finds no GPU; --gpu-tests-on-cpu rehearses without one')
    return torch.device('cuda')


@pytest.fixture(autouse=True)
def _own_settings(device: torch.device) -> Iterator[None]:
    """Each test begins with PyTorch's settings and an empty GPU."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = torch.backends.cudnn.deterministic = False
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = False
    if device.type == 'cuda':
        torch.cuda.empty_cache()


@pytest.fixture(scope='session')
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('weights')


@pytest.fixture
def case(device: torch.device) -> Callable[..., Case]:
    """Makes cases of ``benchmark.py``; images are smaller in a rehearsal."""

    def make(*names: str, batch: int = 2, size: tuple[int, int] = (256, 320)) -> Case:
        shrink = 4 if device.type == 'cpu' else 1
        return Case(*names, batch, size[0] // shrink, size[1] // shrink)

    return make


@pytest.fixture
def start(
    device: torch.device, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Session]:
    """Starts a session of ``benchmark.py`` on the device, or in float64 on the CPU."""
    if device.type == 'cpu':
        monkeypatch.setattr(models, 'read_config', small_config)

    def make(implementation: str, case: Case, *, exact: bool = False) -> Session:
        where = 'cpu' if exact else device.type
        session = start_session(implementation, case, weights, device=where)
        torch.backends.cudnn.benchmark = False  # which a session allows
        if exact:
            session.model.double()
            session.images = session.images.double()
        return session

    return make
