"""Sessions of ``benchmark.py`` in this process, small where no GPU computes.

A session (:mod:`benchmarking.session`) is one implementation of a model with the
weights, batches and steps that all implementations have in common.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from benchmarking import models
from benchmarking.cases import Case, Settings
from benchmarking.session import Job, Session
from mmengine.config import Config

WIDTHS = [8, 16, 24, 32]
read_config = models.read_config  # before a test replaces it


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


def start_session(
    implementation: str, case: Case, folder: Path, *, compiled: bool = False, **settings
) -> Session:
    """A session with the weights of its variant and head.

    Args:
        implementation: one of ``models.IMPLEMENTATIONS``.
        case: what is run.
        folder: where the weights are, or will be.
        compiled: whether the model is compiled.
        settings: of :class:`benchmarking.cases.Settings`.
    """
    path = folder / f'{case.variant}_{case.head}.pth'
    if not path.exists():
        torch.save(models.make_weights(case, 0), path)
    return Session(Job(implementation, case, str(path), Settings(**settings), compiled))
