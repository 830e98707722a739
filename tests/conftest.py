"""What all tests share: compat, active before mmsegmentation's modules are imported,
fixed random numbers, and visualizers of their own."""

from __future__ import annotations

import pytest
import torch

import mmseg_twins  # noqa: F401, activates compat


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_visualizers():
    """mmengine hands out the visualizer that a process made first under a name, which
    writes to the folder of the test that made it."""
    yield
    from mmengine.visualization import Visualizer
    from mmseg.visualization import SegLocalVisualizer

    for visualizer in (Visualizer, SegLocalVisualizer):
        visualizer._instance_dict.clear()
