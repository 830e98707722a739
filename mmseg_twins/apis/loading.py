"""Build a config's segmentor and load a checkpoint strictly."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmseg.models.segmentors import BaseSegmentor
from mmseg.registry import MODELS

from ..checkpoints.locating import locate
from ..checkpoints.reading import Source, read_source
from ..errors import CheckpointError
from ..state_dicts import TRAINING_ONLY, compare, strip_data_parallel, without


def build_segmentor(cfg: Config, model_cfg: dict | None = None) -> BaseSegmentor:
    """Build a segmentor for prediction, without weights.

    Args:
        cfg: an mmsegmentation config.
        model_cfg: the model's config; ``cfg.model`` by default.

    Returns:
        The segmentor in evaluation mode on the CPU, without auxiliary heads, and with
        BatchNorm instead of SyncBatchNorm.
    """
    model_cfg = (cfg.model if model_cfg is None else model_cfg).copy()
    model_cfg.update(auxiliary_head=None, train_cfg=None, pretrained=None)
    # Pretrained weights are in the checkpoint.
    model_cfg['backbone'] = {**model_cfg['backbone'], 'init_cfg': None}
    scope = cfg.get('default_scope') or 'mmseg'
    with DefaultScope.overwrite_default_scope(scope), without_advice():
        segmentor = MODELS.build(model_cfg)
    return revert_sync_batchnorm(segmentor).eval()


def load_weights(segmentor: BaseSegmentor, checkpoint: str | Path) -> Source:
    """Load all weights of a segmentor; no code in the checkpoint can run.

    Args:
        segmentor: from :func:`build_segmentor`.
        checkpoint: path, http(s) URL or name of published weights.

    Returns:
        The content of the checkpoint.

    Raises:
        OSError: the checkpoint does not exist, or cannot be downloaded.
        CheckpointError: it cannot be read, or does not fit the segmentor.
    """
    path = locate(checkpoint)
    source = read_source(path)
    state = strip_data_parallel(source.state)
    differences = compare(segmentor.state_dict(), state, ignored=TRAINING_ONLY)
    if differences:
        raise CheckpointError(f'{path} does not fit the config: {differences}')
    segmentor.load_state_dict(without(state, TRAINING_ONLY))
    return source


@contextlib.contextmanager
def without_advice() -> Iterator[None]:
    """Silence mmsegmentation's warnings about losses, which predictions do not use."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', category=UserWarning, module=r'mmseg\.')
        warnings.filterwarnings('ignore', 'The shape of value will convert')
        yield
