"""What all tests share: compat, active before mmsegmentation's modules are imported,
and fixed random numbers."""

from __future__ import annotations

import pytest
import torch

import mmseg_twins  # noqa: F401, activates compat


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
