"""Benchmarks of small models, without processes of their own."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch
from benchmarking import models
from mmengine.config import Config

read_config = models.read_config  # before a test replaces it

WIDTHS = [8, 16, 24, 32]


@functools.cache
def full_config(implementation: str, variant: str, head: str) -> Config:
    """Reading one takes mmengine a second."""
    return read_config(implementation, variant, head)


def small_config(implementation: str, variant: str, head: str) -> Config:
    """A config of which only the widths are small."""
    cfg = full_config(implementation, variant, head).copy()
    cfg.model.backbone.update(
        embed_dims=WIDTHS, num_heads=[1, 2, 3, 4], depths=[2, 2, 1, 1]
    )
    if head == 'fpn':
        cfg.model.neck.update(in_channels=WIDTHS, out_channels=8)
        cfg.model.decode_head.update(in_channels=[8] * 4, channels=8)
    else:
        cfg.model.decode_head.update(in_channels=WIDTHS, channels=8)
        cfg.model.auxiliary_head.update(in_channels=WIDTHS[2], channels=8)
    return cfg


@pytest.fixture
def small_models(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes every model small, and PyTorch use one thread, which is faster then."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(models, 'read_config', small_config)
    yield
    torch.set_num_threads(threads)
