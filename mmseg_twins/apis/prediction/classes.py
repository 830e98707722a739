"""The names and colours of a segmentor's classes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from mmengine.config import Config
from mmseg.registry import DATASETS


def find_dataset_meta(cfg: Config, meta: Mapping, num_classes: int) -> dict:
    """Finds classes and palette: a checkpoint's own, or else its config's.

    Args:
        cfg: Its ``test_dataloader.dataset`` is asked where the checkpoint says nothing.
        meta: The checkpoint's ``meta``, as mmsegmentation 0.x or 1.x writes it.
        num_classes: Labels that the model can predict.

    Returns:
        ``classes``, a tuple of names, and ``palette``, an RGB triple for each. Without
        a palette, the colours are random ones, the same each time.

    Raises:
        ValueError: Neither names the classes, or there are more labels than names.
    """
    stored = meta.get('dataset_meta') or {
        'classes': meta.get('CLASSES'),
        'palette': meta.get('PALETTE'),
    }
    origin = 'the checkpoint'
    if not stored.get('classes'):
        stored, origin = _configured_meta(cfg), "the config's test_dataloader.dataset"
    classes = tuple(stored.get('classes') or ())
    if not classes:
        raise ValueError(
            'neither the checkpoint nor the config names the classes; set '
            'test_dataloader.dataset.metainfo.classes'
        )
    if len(classes) < num_classes:
        raise ValueError(
            f'{origin} names {len(classes)} classes, and the model predicts '
            f'{num_classes}'
        )
    palette = stored.get('palette') or ()
    if len(palette) != len(classes):
        palette = np.random.default_rng(42).integers(256, size=(len(classes), 3))
    return {
        'classes': classes,
        'palette': [tuple(int(value) for value in colour) for colour in palette],
    }


def _configured_meta(cfg: Config) -> dict:
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:  # one that repeats or cuts another
        dataset = dataset.dataset
    # The class alone knows its names; building it would look for its files.
    known = getattr(DATASETS.get(dataset.type), 'METAINFO', {})
    return {**known, **(dataset.get('metainfo') or {})}
