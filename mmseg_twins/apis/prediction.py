"""Predict image files with a segmentor, and pass it on.

Unlike mmsegmentation's ``init_model`` and ``MMSegInferencer``, weights that do not fit
the config are an error instead of a line in the log, nothing in a checkpoint can run,
and test-time augmentation works.
"""

from __future__ import annotations

import tempfile
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
from ..checkpoints.locating import locate
from ..checkpoints.reading import read_source
from ..errors import SettingError
from ..state_dicts import strip_data_parallel
from . import sharing
from .loading import build_segmentor, load_weights, without_advice

DEVICES = ('auto', 'cpu', 'cuda')
LOADER = 'LoadImageFromFile'


class PredictionError(RuntimeError):
    """An image cannot be read or predicted; the message is the reason."""


@dataclass(frozen=True)
class Prediction:
    """The prediction for an image.

    Args:
        image: (H, W, 3) uint8, RGB, as the pipeline has read it.
        labels: (H, W) uint8, or uint16 if there are more than 256 classes. Classes
            count from 0, and every pixel has one.
    """

    image: np.ndarray
    labels: np.ndarray


class Predictor:
    """Predict image files; :func:`.load_model` makes one of whatever there is.

    Args:
        cfg: of mmsegmentation's kind. If its model is a ``SegTTAModel`` with the
            segmentor as ``module``, predictions are averaged over the augmentations of
            the test pipeline.
        checkpoint: a segmentor's weights: a path, an http(s) URL or a name such as
            ``twins://upernet-svt-s-ade20k``.
        device: ``'auto'``, which is a CUDA GPU if there is one, ``'cpu'`` or
            ``'cuda'``.

    Attributes:
        model: the segmentor.
        classes: names of the classes, in the order of the labels.
        palette: their RGB colors.

    Raises:
        ValueError: there is no such device, the checkpoint cannot be read or does not
            fit the config, or the config lacks what prediction needs.
        OSError: the checkpoint does not exist or cannot be downloaded.

    Example:
        >>> predictor = Predictor(Config.fromfile(config), 'iter_160000.pth')
        >>> predictor.predict('street.jpg').labels.shape
        (228, 320)
    """

    def __init__(
        self, cfg: Config, checkpoint: str | Path, *, device: str = 'auto'
    ) -> None:
        device = choose_device(device)
        init_default_scope(cfg.get('default_scope') or 'mmseg')
        self._load, self._transform = build_pipelines(cfg)
        model = build_segmentor(cfg, cfg.model.get('module', cfg.model))
        self._cfg, self._checkpoint = cfg, locate(checkpoint)
        source = load_weights(model, self._checkpoint)
        model.dataset_meta = find_dataset_meta(cfg, source.meta, model.num_classes)
        self.classes: tuple[str, ...] = model.dataset_meta['classes']
        self.palette: list[tuple[int, int, int]] = model.dataset_meta['palette']
        self.model = model.to(device)
        self._tester = self.model
        if 'module' in cfg.model:
            self._tester = MODELS.build({**cfg.model, 'module': self.model})

    def predict(self, path: str | Path) -> Prediction:
        """Predict an image file.

        Raises:
            PredictionError: the file cannot be read, or the model does not take the
                image.
        """
        try:
            sample = self._load({'img_path': str(path)})
        # mmcv raises different errors for damaged files.
        except (OSError, AssertionError, AttributeError, cv2.error) as error:
            reason = getattr(error, 'strerror', None) or 'it cannot be decoded'
            raise PredictionError(reason) from error
        image = cv2.cvtColor(sample['img'].astype(np.uint8), cv2.COLOR_BGR2RGB)
        try:
            with torch.inference_mode(), without_advice():
                batch = pseudo_collate([self._transform(sample)])
                (result,) = self._tester.test_step(batch)
        except (RuntimeError, ValueError, cv2.error) as error:
            height, width = image.shape[:2]
            raise PredictionError(
                f'the model does not take {width}x{height} px '
                f'({str(error).strip().splitlines()[0]})'
            ) from error
        labels = result.pred_sem_seg.data.squeeze(0).cpu().numpy()
        dtype = np.uint8 if len(self.classes) <= 256 else np.uint16
        return Prediction(image, labels.astype(dtype))

    __call__ = predict

    def save_pretrained(
        self, folder: str | Path, *, name: str | None = None, force: bool = False
    ) -> None:
        """Write weights, config and model card, for :func:`.load_model`.

        Args:
            folder: is made if it does not exist.
            name: for the model card; that of the folder by default.
            force: whether existing files may be replaced.

        Raises:
            OSError: a file exists already, or cannot be written.
        """
        sharing.save_segmentor(
            Path(folder),
            strip_data_parallel(read_source(self._checkpoint).state),
            self._cfg,
            self.model.dataset_meta,
            repository=name or str(folder),
            force=force,
        )

    def push_to_hub(self, repository: str, *, private: bool = False) -> str:
        """Upload weights, config and model card to the Hugging Face hub.

        Args:
            repository: ``OWNER/NAME``; is made if it does not exist.
            private: whether a new repository is private.

        Returns:
            The repository's URL.

        Raises:
            SharingError: the hub refuses the upload, or cannot be reached.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, name=repository, force=True)
            return sharing.upload_segmentor(Path(folder), repository, private=private)


def choose_device(name: str) -> str:
    """Return the device to predict on, ``'cpu'`` or ``'cuda'``.

    Raises:
        ValueError: ``name`` is not one of ``DEVICES``, or PyTorch finds no GPU.
    """
    if name not in DEVICES:
        raise SettingError(f'device={name!r}; give one of {", ".join(DEVICES)}')
    if name == 'auto':
        return 'cuda' if torch.cuda.is_available() else 'cpu'
    if name == 'cuda' and not torch.cuda.is_available():
        raise SettingError(
            "device='cuda', but PyTorch finds no CUDA GPU; give 'cpu', or run `python "
            '-m mmseg_twins` to diagnose your installation'
        )
    return name


def build_pipelines(cfg: Config) -> tuple[Compose, Compose]:
    """Build the test pipeline's loader of images, and the rest.

    Raises:
        ValueError: there is no pipeline that loads image files.
    """
    loader = cfg.get('test_dataloader') or {}
    steps = loader.get('dataset', {}).get('pipeline')
    if not steps or steps[0]['type'] != LOADER:
        raise SettingError(
            'config: prediction needs a test_dataloader.dataset.pipeline that begins '
            f'with {LOADER}'
        )
    return Compose([steps[0]]), Compose(without_annotations(steps[1:]))


def without_annotations(steps: list) -> list:
    """Return a pipeline without what loads annotations, inside augmentations too."""
    kept = []
    for step in steps:
        if isinstance(step, (list, tuple)):
            if not (step := without_annotations(step)):
                continue
        elif step['type'].startswith('Load'):
            continue
        elif 'transforms' in step:
            step = {**step, 'transforms': without_annotations(step['transforms'])}
        kept.append(step)
    return kept
