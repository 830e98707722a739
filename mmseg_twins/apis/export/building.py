"""The segmentor of a config, with the weights of a checkpoint."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pickle import UnpicklingError

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmengine.runner.checkpoint import CheckpointLoader
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import DATASETS, MODELS
from torch import Tensor

from ...version import __version__

#: Stands for a checkpoint, for random weights.
NO_CHECKPOINT = 'none'
# What is not exported need not be in the checkpoint, nor fit.
LEFT_OUT = 'auxiliary_head.'


def build_segmentor(cfg: Config, checkpoint: str) -> EncoderDecoder:
    """Builds a config's segmentor, ready to predict on the CPU.

    Args:
        cfg: of mmsegmentation's kind.
        checkpoint: path or URL of the weights, or ``'none'`` for random ones.

    Returns:
        The segmentor in evaluation mode, SyncBN as BN.

    Raises:
        ValueError: the config describes no ``EncoderDecoder``, or the checkpoint holds
            no weights for it.
    """
    model_cfg = cfg.model.copy()
    model_cfg.backbone.init_cfg = None  # whatever is pretrained is in the checkpoint
    model_cfg.auxiliary_head = None
    model_cfg.train_cfg = None
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmseg')):
        segmentor = MODELS.build(model_cfg)
    if not isinstance(segmentor, EncoderDecoder):
        raise ValueError(
            f'the model of the config is {type(segmentor).__name__}; export supports '
            'EncoderDecoder'
        )
    segmentor = revert_sync_batchnorm(segmentor)
    if checkpoint == NO_CHECKPOINT:
        torch.manual_seed(0)
        with quiet():
            segmentor.init_weights()
    else:
        load_weights(segmentor, checkpoint)
    return segmentor.eval()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps mmengine's reports on each parameter and file from the user."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')
    try:
        yield
    finally:
        logger.setLevel(level)


def load_weights(segmentor: EncoderDecoder, source: str) -> None:
    """Loads a checkpoint whose tensors are the segmentor's.

    Args:
        segmentor: gets the weights.
        source: path or URL, read with ``weights_only=True``.

    Raises:
        ValueError: it cannot be read, or has other tensors.
    """
    try:
        with quiet():
            loaded = CheckpointLoader.load_checkpoint(source, map_location='cpu')
    except UnpicklingError as error:
        raise ValueError(
            f'checkpoint: {source!r} is no file of PyTorch, or asks for more than '
            'tensors and plain values'
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().split('\n')[0]
        raise ValueError(
            f'checkpoint: {source!r} cannot be read as a checkpoint: {reason}'
        ) from error
    state = loaded.get('state_dict', loaded) if isinstance(loaded, dict) else {}
    found = {
        name.removeprefix('module.'): value
        for name, value in state.items()
        if isinstance(value, Tensor)
    }
    found = {k: v for k, v in found.items() if not k.startswith(LEFT_OUT)}
    wanted = segmentor.state_dict()
    wrong = [
        name
        for name in (*wanted, *found)
        if name not in wanted
        or name not in found
        or wanted[name].shape != found[name].shape
    ]
    if wrong:
        name = wrong[0]
        given, expected = (
            f'{tuple(tensors[name].shape)}' if name in tensors else 'missing'
            for tensors in (found, wanted)
        )
        raise ValueError(
            f"checkpoint: {source!r} does not fit the config's model; the first of "
            f'{len(wrong)} different tensors, {name!r}, is {given} in the checkpoint '
            f'and {expected} in the model; give the checkpoint of this config (one of '
            'another layout is converted by tools/model_converters/twins2mmseg.py)'
        )
    segmentor.load_state_dict(found)


def describe_model(
    cfg: Config,
    segmentor: EncoderDecoder,
    *,
    checkpoint: str,
    output: str,
    embed_preprocessing: bool,
) -> dict[str, str]:
    """What someone who has only the exported file needs to know.

    Returns:
        Texts by name, for the file's metadata; lists as JSON.
    """
    preprocessor = segmentor.data_preprocessor
    normalized = hasattr(preprocessor, 'mean')
    order = 'RGB' if getattr(preprocessor, 'channel_conversion', True) else 'BGR'
    if embed_preprocessing:
        image = 'uint8, (N, H, W, 3), RGB, 0 to 255; normalized inside'
    elif normalized:
        image = f'float32, (N, 3, H, W), {order}, (value in 0 to 255 - mean) / std'
    else:
        image = f'float32, (N, 3, H, W), {order}, 0 to 255'
    outputs = {
        'logits': 'float32, (N, classes, H, W)',
        'classes': 'int64, (N, H, W), an index into the list of classes',
    }
    result = {
        'input': image,
        'output': outputs[output],
        'config': getattr(cfg, 'filename', None) or '',
        'checkpoint': checkpoint,
        'mmseg_twins_version': __version__,
        'torch_version': torch.__version__,
    }
    if normalized:
        result['mean'] = json.dumps(preprocessor.mean.flatten().tolist())
        result['std'] = json.dumps(preprocessor.std.flatten().tolist())
    return result | describe_classes(cfg)


def describe_classes(cfg: Config) -> dict[str, str]:
    """Names and colours of the classes, as far as the config's dataset has them."""
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmseg')):
        kind = DATASETS.get(dataset['type']) if 'type' in dataset else None
    meta = {**getattr(kind, 'METAINFO', {}), **(dataset.get('metainfo') or {})}
    return {
        key: json.dumps(meta[key]) for key in ('classes', 'palette') if meta.get(key)
    }
