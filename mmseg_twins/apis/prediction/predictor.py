"""A segmentor with a checkpoint's weights, ready to predict image files.

What mmsegmentation's ``init_model`` and ``MMSegInferencer`` do, with three
differences: weights that do not fit the config are an error instead of a line in the
log, a checkpoint is read once and never lets anything in it run, and test-time
augmentation works.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.runner import load_state_dict
from mmseg.apis import init_model
from mmseg.registry import MODELS
from torch import Tensor, nn

from ...checkpoints.downloading import fetch, is_url
from ...checkpoints.reading import Source, read_source
from .classes import find_dataset_meta

DEVICES = ('auto', 'cpu', 'cuda')
LOADER = 'LoadImageFromFile'
# Used in training only; a checkpoint may lack it, and it would take memory.
TRAINING_ONLY = 'auxiliary_head'


class PredictionError(RuntimeError):
    """An image that cannot be read or predicted; the message is the reason."""


@dataclass(frozen=True)
class Prediction:
    """What a model makes of an image.

    Args:
        image: (H, W, 3) uint8, RGB, as the model's pipeline has read it.
        labels: (H, W) uint8, or uint16 where there are more than 256 classes. Classes
            count from 0, and every pixel has one.
    """

    image: np.ndarray
    labels: np.ndarray


class Predictor:
    """Predicts image files.

    Args:
        cfg: Config of mmsegmentation's kind. With a ``module`` in its model, as
            :func:`mmseg_twins.cli.common.use_test_time_augmentation` leaves it, predictions
            are averaged over the augmentations of its test pipeline.
        checkpoint: Path or http(s) URL of a segmentor's weights.
        device: ``'auto'`` is a CUDA GPU where there is one, or ``'cpu'``, ``'cuda'``.

    Attributes:
        model: The segmentor; its ``dataset_meta`` has ``classes`` and ``palette``.

    Raises:
        ValueError: There is no such device, the checkpoint cannot be read or does not
            fit the config, or the config lacks what prediction needs.
        OSError: The checkpoint is not there.

    Example:
        >>> predictor = Predictor(Config.fromfile(config), 'iter_160000.pth')
        >>> predictor('street.jpg').labels.shape
        (228, 320)
    """

    def __init__(
        self, cfg: Config, checkpoint: str | Path, *, device: str = 'auto'
    ) -> None:
        device = choose_device(device)
        init_default_scope(cfg.get('default_scope') or 'mmseg')
        self._load, self._transform = _build_pipelines(cfg)
        path = fetch(checkpoint) if is_url(str(checkpoint)) else Path(checkpoint)
        source = read_source(path)
        augmentation = cfg.model if 'module' in cfg.model else None
        model = _build_segmentor(cfg, cfg.model.get('module', cfg.model))
        _load_weights(model, source, path)
        model.dataset_meta = find_dataset_meta(cfg, source.meta, model.num_classes)
        if device == 'cpu':
            model = revert_sync_batchnorm(model)
        self.model = model.to(device).eval()
        self._tester = self.model
        if augmentation is not None:
            self._tester = MODELS.build({**augmentation, 'module': self.model})

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        return self.model.dataset_meta['classes']

    @property
    def palette(self) -> list[tuple[int, int, int]]:
        """RGB colours of the classes, in the same order."""
        return self.model.dataset_meta['palette']

    def __call__(self, path: str | Path) -> Prediction:
        """Predicts an image.

        Args:
            path: The file, of a kind that the pipeline's loader reads.

        Raises:
            PredictionError: It cannot be read, or the model cannot take it.
        """
        try:
            sample = self._load({'img_path': str(path)})
        # Of a damaged file, mmcv raises whatever its decoder stumbles over.
        except (OSError, AssertionError, AttributeError, cv2.error) as error:
            reason = getattr(error, 'strerror', None) or 'no image that can be decoded'
            raise PredictionError(reason) from error
        image = cv2.cvtColor(sample['img'].astype(np.uint8), cv2.COLOR_BGR2RGB)
        try:
            with torch.inference_mode(), _without_advice():
                batch = pseudo_collate([self._transform(sample)])
                (result,) = self._tester.test_step(batch)
        except (RuntimeError, ValueError, cv2.error) as error:
            height, width = image.shape[:2]
            raise PredictionError(
                f'the model cannot take it at {width}x{height} '
                f'({str(error).strip().splitlines()[0]})'
            ) from error
        labels = result.pred_sem_seg.data.squeeze(0).cpu().numpy()
        kind = np.uint8 if len(self.classes) <= 256 else np.uint16
        return Prediction(image, labels.astype(kind))


def choose_device(name: str) -> str:
    """Finds the device to predict on.

    Args:
        name: One of ``DEVICES``.

    Returns:
        ``'cpu'`` or ``'cuda'``.

    Raises:
        ValueError: It is another, or PyTorch finds no such device.
    """
    if name not in DEVICES:
        raise ValueError(f'device is {name!r}; it can be {", ".join(DEVICES)}')
    if name == 'auto':
        return 'cuda' if torch.cuda.is_available() else 'cpu'
    if name == 'cuda' and not torch.cuda.is_available():
        raise ValueError(
            'device is cuda, and PyTorch finds no CUDA GPU here; take cpu, or see '
            'what `python -m mmseg_twins` says'
        )
    return name


def _build_pipelines(cfg: Config) -> tuple[Compose, Compose]:
    """The test pipeline in two parts: its loader, which gives the image, and the rest.

    Raises:
        ValueError: There is none that loads image files.
    """
    loader = cfg.get('test_dataloader') or {}
    steps = loader.get('dataset', {}).get('pipeline')
    if not steps or steps[0]['type'] != LOADER:
        raise ValueError(
            'config: prediction needs a test_dataloader.dataset.pipeline that begins '
            f'with {LOADER}'
        )
    return Compose([steps[0]]), Compose(_without_annotations(steps[1:]))


def _without_annotations(steps: list) -> list:
    """Leaves out of a pipeline what loads annotations, inside augmentations too."""
    kept = []
    for step in steps:
        if isinstance(step, (list, tuple)):
            if not (step := _without_annotations(step)):
                continue
        elif step['type'].startswith('Load'):
            continue
        elif 'transforms' in step:
            step = {**step, 'transforms': _without_annotations(step['transforms'])}
        kept.append(step)
    return kept


def _build_segmentor(cfg: Config, settings: dict) -> nn.Module:
    """Builds a segmentor without weights, and without what only training needs."""
    settings = copy.deepcopy(settings)
    if settings.get(TRAINING_ONLY):
        settings[TRAINING_ONLY] = None
    scope = cfg.get('default_scope') or 'mmseg'
    with _without_advice():
        return init_model(
            Config({'model': settings, 'default_scope': scope}), device='cpu'
        )


@contextmanager
def _without_advice() -> Iterator[None]:
    """Leaves out what mmsegmentation advises about losses, which predict nothing."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', category=UserWarning, module=r'mmseg\.')
        warnings.filterwarnings('ignore', 'The shape of value will convert')
        yield


def _load_weights(model: nn.Module, source: Source, path: Path) -> None:
    """Gives a model the weights of a checkpoint, all of them.

    Raises:
        ValueError: They do not fit.
    """
    state = {
        name.removeprefix('module.'): tensor for name, tensor in source.state.items()
    }
    state = {
        name: tensor
        for name, tensor in state.items()
        if not name.startswith(f'{TRAINING_ONLY}.')
    }
    try:
        load_state_dict(model, state, strict=True, logger='silent')
    except RuntimeError:
        raise ValueError(
            f'{path} does not fit the config: {_differences(model.state_dict(), state)}'
        ) from None


def _differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Says where weights differ from a model's."""
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    shared = [name for name in expected if name in found]
    if not shared:
        return (
            f'none of its tensors ({extra[0] if extra else "there are none"}, ...) has '
            f'the name of one of the model ({missing[0]}, ...); a bare backbone '
            'predicts nothing, and checkpoints of other projects are converted by '
            'twins2mmseg'
        )
    unequal = [name for name in shared if expected[name].shape != found[name].shape]
    classifiers = [
        name
        for name in unequal
        if name.endswith('conv_seg.weight') and len(expected[name]) != len(found[name])
    ]
    parts = []
    if unequal:
        name = (classifiers or unequal)[0]
        given, wanted = (tuple(state[name].shape) for state in (found, expected))
        hint = ': another number of classes' if classifiers else ''
        parts.append(
            f'{len(unequal)} of its tensors have other shapes ({name} is {given} and '
            f'the model has {wanted}{hint})'
        )
    if missing:
        parts.append(f'{len(missing)} are missing ({missing[0]}, ...)')
    if extra:
        parts.append(f'{len(extra)} have no place in the model ({extra[0]}, ...)')
    return ', '.join(parts)
