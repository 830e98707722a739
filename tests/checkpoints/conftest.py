"""Checkpoint files that several tests read."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from checkpoints.layouts import random_state, shapes_of


@pytest.fixture(scope='session')
def classifier(tmp_path_factory) -> Path:
    """An SVT-S as the official training script saves it."""
    path = tmp_path_factory.mktemp('checkpoints') / 'classifier.pth'
    torch.manual_seed(0)
    state = random_state(shapes_of('official-cls', 'svt-s'), torch.float16)
    checkpoint = {
        'model': state,
        'optimizer': {'state': {}, 'param_groups': [{'lr': 1e-3}]},
        'lr_scheduler': {'step': 1},
        'epoch': 299,
        'args': argparse.Namespace(lr=1e-3, output_dir='out'),
    }
    torch.save(checkpoint, path)
    return path


@pytest.fixture
def store(tmp_path) -> Path:
    """Where a converted checkpoint goes, in a folder of its own."""
    (tmp_path / 'out').mkdir()
    return tmp_path / 'out' / 'store.pth'
