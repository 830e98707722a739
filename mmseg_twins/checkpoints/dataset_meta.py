"""Names and colors of a segmentor's classes, from its checkpoint or its config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.registry import DATASETS


def find_dataset_meta(cfg: Config, meta: Mapping, num_classes: int) -> dict:
    """Return classes and palette: the checkpoint's, or else the config's.

    Args:
        cfg: its ``test_dataloader.dataset`` is used if the checkpoint has no classes.
        meta: the checkpoint's ``meta``, as mmcv 1.x or mmengine writes it.
        num_classes: number of labels that the model can predict.

    Returns:
        ``classes``, a tuple of names, and ``palette``, an RGB triple for each. If there
        is no palette, distinct colors are chosen, the same ones each time.

    Raises:
        ValueError: neither has the classes, or there are fewer names than labels.
    """
    stored, origin = stored_meta(meta), 'the checkpoint'
    if not stored.get('classes'):
        stored = configured_meta(cfg)
        origin = "the config's test_dataloader.dataset"
    classes = tuple(stored.get('classes') or ())
    if not classes:
        raise ValueError(
            'neither the checkpoint nor the config names the classes; set '
            'test_dataloader.dataset.metainfo.classes'
        )
    if len(classes) < num_classes:
        raise ValueError(
            f'{origin} names {len(classes)} classes, but the model predicts '
            f'{num_classes}'
        )
    palette = complete_palette(stored.get('palette'), len(classes))
    return {'classes': classes, 'palette': palette}


def complete_palette(
    palette: Sequence[Sequence[int]] | None, count: int
) -> list[tuple[int, ...]]:
    """Return a palette, or distinct colors if it does not have one for each class."""
    if palette is None or len(palette) != count:
        return distinct_colors(count)
    return [tuple(int(value) for value in color) for color in palette]


def distinct_colors(count: int) -> list[tuple[int, ...]]:
    """Return RGB colors, each far from all those before it."""
    candidates = np.random.default_rng(0).integers(32, 256, size=(4 * count + 200, 3))
    distances = np.full(len(candidates), np.inf)
    colors = []
    for _ in range(count):
        color = candidates[distances.argmax()]
        colors.append(tuple(color.tolist()))
        distances = np.minimum(distances, np.linalg.norm(candidates - color, axis=1))
    return colors


def innermost_dataset(cfg: Config, loader: str) -> Mapping:
    """Return the config of a loader's dataset, without wrappers around it."""
    dataset = (cfg.get(loader) or {}).get('dataset') or {}
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    return dataset


def configured_meta(cfg: Config) -> dict:
    """Return the ``METAINFO`` and ``metainfo`` of a config's test dataset."""
    dataset = innermost_dataset(cfg, 'test_dataloader')
    if 'type' not in dataset:
        return {}
    # The dataset is not built, because that would look for its files.
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmseg'):
        known = getattr(DATASETS.get(dataset['type']), 'METAINFO', {})
    return {**known, **(dataset.get('metainfo') or {})}


def stored_meta(meta: Mapping) -> dict:
    """Return the ``classes`` and the ``palette`` of mmengine's or mmcv 1.x's ``meta``.

    A value of another type is left out.
    """
    modern = meta.get('dataset_meta')
    found = modern if isinstance(modern, Mapping) else {}
    classes = found.get('classes', meta.get('CLASSES'))
    palette = found.get('palette', meta.get('PALETTE'))
    result = {}
    if is_list_of(classes, str):
        result['classes'] = list(classes)
    if isinstance(palette, (list, tuple)) and all(
        is_list_of(color, int) for color in palette
    ):
        result['palette'] = [list(color) for color in palette]
    return result


def is_list_of(value: object, kind: type) -> bool:
    """Return whether a value is a list or tuple whose items are of one type."""
    return isinstance(value, (list, tuple)) and all(
        type(item) is kind for item in value
    )
