"""A segmentor with a checkpoint's weights, ready to predict image files.

What mmsegmentation's ``init_model`` and ``MMSegInferencer`` do, with three
differences: weights that do not fit the config are an error instead of a line in the
log, a checkpoint is read once and never lets anything in it run, and test-time
augmentation works.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from ..checkpoints.dataset_meta import find_dataset_meta
from .loading import build_segmentor, load_weights, without_advice

DEVICES = ('auto', 'cpu', 'cuda')
LOADER = 'LoadImageFromFile'


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
        augmentation = cfg.model if 'module' in cfg.model else None
        model = build_segmentor(cfg, cfg.model.get('module', cfg.model))
        source = load_weights(model, checkpoint)
        model.dataset_meta = find_dataset_meta(cfg, source.meta, model.num_classes)
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
            with torch.inference_mode(), without_advice():
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
