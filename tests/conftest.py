"""What all tests share: no way to other machines, compat, active before
mmsegmentation's modules are imported, fixed random numbers, and visualizers of their
own."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

import mmseg_twins  # noqa: F401, activates compat

NO_NETWORK = Path(__file__).parent / 'no_network'
CLOSED = 'http://127.0.0.1:9'  # for programs other than Python: nothing answers there


def pytest_configure(config: pytest.Config) -> None:
    """Cuts the tests, and the processes that they start, off from other machines."""
    if 'no_network' not in sys.modules:  # its hook stays for good
        spec = importlib.util.spec_from_file_location(
            'no_network', NO_NETWORK / 'sitecustomize.py'
        )
        sys.modules['no_network'] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    earlier = os.environ.get('PYTHONPATH')
    os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, (str(NO_NETWORK), earlier)))
    for scheme in ('http', 'https', 'ftp', 'all'):
        os.environ[f'{scheme}_proxy'] = os.environ[f'{scheme.upper()}_PROXY'] = CLOSED
    os.environ['no_proxy'] = os.environ['NO_PROXY'] = 'localhost,127.0.0.1,::1'


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_compilations():
    """torch.compile remembers the sizes that a process has seen, and opens them."""
    yield
    if 'torch._dynamo' in sys.modules:
        torch._dynamo.reset()


@pytest.fixture(autouse=True)
def _own_visualizers():
    """mmengine hands out the visualizer that a process made first under a name, which
    writes to the folder of the test that made it."""
    yield
    from mmengine.visualization import Visualizer
    from mmseg.visualization import SegLocalVisualizer

    for visualizer in (Visualizer, SegLocalVisualizer):
        visualizer._instance_dict.clear()
