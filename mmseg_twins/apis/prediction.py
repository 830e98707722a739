"""Predict image files with a segmentor, and pass it on.

Unlike mmsegmentation's ``init_model`` and ``MMSegInferencer``, weights that do not fit
the config are an error instead of a line in the log, nothing in a checkpoint can run,
and test-time augmentation works.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import nn

from ..checkpoints.dataset_meta import find_dataset_meta
from ..checkpoints.locating import locate
from ..checkpoints.reading import read_source
from ..errors import SettingError
from ..models.segmentors.windows import sliding_grid
from ..state_dicts import strip_data_parallel
from . import sharing
from .loading import build_segmentor, load_weights, without_advice
from .settings import extended_model, windows, without_resizing

DEVICES = ('auto', 'cpu', 'cuda')
LOADER = 'LoadImageFromFile'
# Is told how many windows of an image are done, and how many there are.
Progress = Callable[[int, int], None]


class PredictionError(RuntimeError):
    """An image cannot be read or predicted; the message is the reason."""


@dataclass(frozen=True)
class Prediction:
    """The prediction for an image.

    Args:
        image: (H, W, 3) uint8, RGB, as the pipeline has read it.
        labels: (H, W) uint8, or uint16 if there are more than 256 classes. Classes
            count from 0, and every pixel has one.
        confidence: (H, W) float32, the probability of each label, if it is wanted.
        tested_size: height and width at which the model has seen the image; of the
            largest view with test-time augmentation.
    """

    image: np.ndarray
    labels: np.ndarray
    confidence: np.ndarray | None
    tested_size: tuple[int, int]

    @property
    def was_shrunk(self) -> bool:
        """Whether the model has seen fewer rows or columns than the image has."""
        sides = zip(self.tested_size, self.labels.shape, strict=True)
        return any(tested < side for tested, side in sides)


class Sample(NamedTuple):
    """An image, (H, W, 3) uint8, RGB, and what the test pipeline makes of it."""

    image: np.ndarray
    prepared: dict


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
        confidence: whether predictions have the probability of each label.
        full_resolution: whether windows slide over the image at its own resolution,
            without the resizing of the test pipeline.
        window: side of the windows in pixels, which implies ``full_resolution``; the
            config's crop size by default.
        stride: step between windows in pixels, likewise; two thirds of the window by
            default.
        batch: how many windows go through the network at a time or, without windows,
            how many images of one size.

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
        self,
        cfg: Config,
        checkpoint: str | Path,
        *,
        device: str = 'auto',
        confidence: bool = False,
        full_resolution: bool = False,
        window: int | None = None,
        stride: int | None = None,
        batch: int = 1,
    ) -> None:
        device = choose_device(device)
        init_default_scope(cfg.get('default_scope') or 'mmseg')
        if batch < 1:
            raise SettingError(f'batch={batch}; give a positive number')
        slides = full_resolution or window is not None or stride is not None
        self._batch = 1 if slides else batch
        self._load, self._transform = build_pipelines(cfg, slides)
        model_cfg = cfg.model
        if slides or confidence:
            asked = 'prediction at full resolution' if slides else 'confidence'
            model_cfg = extended_model(cfg, asked)
        segmentor = model_cfg.get('module', model_cfg)
        if confidence:
            segmentor.test_cfg.confidence = True
        if slides:
            segmentor.test_cfg.update(
                mode='slide', batch_windows=batch, **windows(segmentor, window, stride)
            )
        self._slides = slides
        model = build_segmentor(cfg, segmentor)
        self._cfg, self._checkpoint = cfg, locate(checkpoint)
        source = load_weights(model, self._checkpoint)
        model.dataset_meta = find_dataset_meta(cfg, source.meta, model.num_classes)
        self.classes: tuple[str, ...] = model.dataset_meta['classes']
        self.palette: list[tuple[int, int, int]] = model.dataset_meta['palette']
        self.model = model.to(device)
        self._tester = self.model
        if 'module' in model_cfg:
            self._tester = MODELS.build({**model_cfg, 'module': self.model})

    def predict(
        self, path: str | Path, *, progress: Progress | None = None
    ) -> Prediction:
        """Predict an image file.

        Args:
            path: the file.
            progress: is called with the number of windows done, and of all windows,
                where windows slide over the image.

        Raises:
            PredictionError: the file cannot be read, or the model does not take the
                image.
        """
        (prediction,) = self._test([self._read(path)], progress)
        return prediction

    __call__ = predict

    def predict_all(
        self, paths: Iterable[str | Path], *, progress: Progress | None = None
    ) -> Iterator[Prediction | PredictionError]:
        """Predict image files; neighbors of one size go through the network together.

        Args:
            paths: the files.
            progress: see :meth:`predict`.

        Yields:
            For each file its prediction, or why there is none.
        """
        waiting: list[Sample] = []
        for path in paths:
            try:
                sample = self._read(path)
            except PredictionError as error:
                yield from self._test_each(waiting, progress)
                waiting = []
                yield error
                continue
            if waiting and waiting[0].image.shape != sample.image.shape:
                yield from self._test_each(waiting, progress)
                waiting = []
            waiting.append(sample)
            if len(waiting) == self._batch:
                yield from self._test_each(waiting, progress)
                waiting = []
        yield from self._test_each(waiting, progress)

    def _test_each(
        self, samples: Sequence[Sample], progress: Progress | None
    ) -> Iterator[Prediction | PredictionError]:
        """Predict images together or, where that fails, one by one."""
        if not samples:
            return
        try:
            yield from self._test(samples, progress)
        except PredictionError as error:
            if len(samples) == 1:
                yield error
                return
            for sample in samples:
                yield from self._test_each([sample], progress)

    def _read(self, path: str | Path) -> Sample:
        """Read an image file and prepare it for the model."""
        try:
            sample = self._load({'img_path': str(path)})
        # mmcv raises different errors for damaged files.
        except (OSError, AssertionError, AttributeError, cv2.error) as error:
            reason = getattr(error, 'strerror', None) or 'it cannot be decoded'
            raise PredictionError(reason) from error
        image = cv2.cvtColor(sample['img'].astype(np.uint8), cv2.COLOR_BGR2RGB)
        try:
            return Sample(image, self._transform(sample))
        except (RuntimeError, ValueError, cv2.error) as error:
            raise refusal(image, error) from error

    def _test(
        self, samples: Sequence[Sample], progress: Progress | None
    ) -> list[Prediction]:
        """Predict images of one size."""
        views = samples[0].prepared['inputs']
        views = views if isinstance(views, list) else [views]
        tested_size = max(tuple(view.shape[-2:]) for view in views)
        try:
            batch = pseudo_collate([sample.prepared for sample in samples])
            with (
                torch.inference_mode(),
                without_advice(),
                self._telling(progress),
            ):
                results = self._tester.test_step(batch)
        except (RuntimeError, ValueError, cv2.error) as error:
            raise refusal(samples[0].image, error) from error
        return [
            self._prediction(sample.image, result, tested_size)
            for sample, result in zip(samples, results, strict=True)
        ]

    def _prediction(
        self, image: np.ndarray, result: SegDataSample, tested_size: tuple[int, int]
    ) -> Prediction:
        labels = result.pred_sem_seg.data.squeeze(0).cpu().numpy()
        dtype = np.uint8 if len(self.classes) <= 256 else np.uint16
        confidence = None
        if 'confidence' in result:
            confidence = result.confidence.data.squeeze(0).float().cpu().numpy()
        return Prediction(image, labels.astype(dtype), confidence, tested_size)

    @contextmanager
    def _telling(self, progress: Progress | None) -> Iterator[None]:
        """Tell how many windows of an image have gone through the backbone."""
        if progress is None or not self._slides:
            yield
            return
        done = total = 0

        def begin(module: nn.Module, args: tuple, kwargs: dict) -> None:
            nonlocal total
            size = tuple(kwargs['inputs'].shape[2:])  # with padding
            test_cfg = self.model.test_cfg
            grid = sliding_grid(size, test_cfg['crop_size'], test_cfg['stride'])
            total = len(grid.ys) * len(grid.xs)

        def count(module: nn.Module, args: tuple, output: object) -> None:
            nonlocal done
            done += len(args[0])
            progress(done, total)

        handles = [
            self.model.register_forward_pre_hook(begin, with_kwargs=True),
            self.model.backbone.register_forward_hook(count),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

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


def refusal(image: np.ndarray, error: Exception) -> PredictionError:
    """Return the error for an image that the model does not take."""
    height, width = image.shape[:2]
    return PredictionError(
        f'the model does not take {width}x{height} px '
        f'({str(error).strip().splitlines()[0]})'
    )


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


def build_pipelines(
    cfg: Config, full_resolution: bool = False
) -> tuple[Compose, Compose]:
    """Build the test pipeline's loader of images, and the rest.

    Args:
        cfg: of mmsegmentation's kind.
        full_resolution: whether to leave out what resizes images.

    Raises:
        ValueError: there is no pipeline that loads image files, or it has views of
            several sizes and ``full_resolution`` is asked for.
    """
    loader = cfg.get('test_dataloader') or {}
    steps = loader.get('dataset', {}).get('pipeline')
    if not steps or steps[0]['type'] != LOADER:
        raise SettingError(
            'config: prediction needs a test_dataloader.dataset.pipeline that begins '
            f'with {LOADER}'
        )
    rest = without_annotations(steps[1:])
    if full_resolution:
        rest = without_resizing(rest)
    return Compose([steps[0]]), Compose(rest)


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
