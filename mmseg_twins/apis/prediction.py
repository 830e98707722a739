"""Predict image files with a segmentor.

Unlike with mmsegmentation's ``init_model`` and ``MMSegInferencer``, weights that do not
fit the config are an error instead of a line in the log, no code in a checkpoint can
run, and test-time augmentation works.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from ..checkpoints.dataset_meta import find_dataset_meta
from ..checkpoints.locating import locate
from ..checkpoints.reading import one_line, read_source
from ..errors import SettingError
from ..models.segmentors.encoder_decoder import Progress
from ..state_dicts import strip_data_parallel
from . import sharing
from .loading import build_segmentor, load_weights, without_advice
from .overlay import Painter
from .rows import (
    ArrayRows,
    PredictionError,
    RowSink,
    RowSource,
    Scale,
    Windows,
    eight_bits,
    is_tiff,
    keeping_parts,
    row_sink,
    tiff_rows,
)
from .settings import (
    build_pipelines,
    check_values,
    extended_model,
    row_loader,
    slides_windows,
    windows,
)

DEVICES = ('auto', 'cpu', 'cuda')


@dataclass(frozen=True)
class Prediction:
    """The prediction for an image.

    Args:
        image: (H, W, 3) uint8, RGB, as the pipeline reads it.
        labels: (H, W) uint8, or uint16 if there are more than 256 classes. Classes are
            numbered from 0, and every pixel has one.
        confidence: (H, W) float32, the probability of each label; None unless the
            predictor has ``confidence=True``.
        tested_size: height and width of the model's input; with test-time
            augmentation, of the largest one.
    """

    image: np.ndarray
    labels: np.ndarray
    confidence: np.ndarray | None
    tested_size: tuple[int, int]

    @property
    def was_shrunk(self) -> bool:
        """Whether the model's input has fewer rows or columns than the image."""
        sides = zip(self.tested_size, self.labels.shape, strict=True)
        return any(tested < side for tested, side in sides)


class Strip(NamedTuple):
    """The prediction for some rows of an image.

    Args:
        rows: of the image.
        labels: (rows, W), as in :class:`Prediction`.
        confidence: (rows, W) float32 or None, likewise.
    """

    rows: slice
    labels: np.ndarray
    confidence: np.ndarray | None


class Sample(NamedTuple):
    """An image, (H, W, 3) uint8, RGB, and the result of the test pipeline."""

    image: np.ndarray
    prepared: dict


class Predictor:
    """Predict image files; :func:`.load_model` is the usual way to make a predictor.

    Args:
        cfg: an mmsegmentation config. If its model is a ``SegTTAModel`` with the
            segmentor as ``module``, predictions are averaged over the augmentations of
            the test pipeline.
        checkpoint: the segmentor's weights: a path, an http(s) URL or a name such as
            ``twins://upernet-svt-s-ade20k``.
        device: ``'cpu'``, ``'cuda'`` or ``'auto'``: a CUDA GPU if there is one.
        confidence: whether to predict the probability of each label, too.
        full_resolution: whether to slide windows over the image at its own resolution
            instead of resizing it as the test pipeline does.
        window: side of the windows in pixels; the config's crop size by default.
            Implies ``full_resolution``.
        stride: step between windows in pixels; two thirds of the window by default.
            Implies ``full_resolution``.
        batch: number of windows in a batch or, without windows, of images of one size.
        bands: numbers of the bands that the model takes, from 1, with colors in the
            order red, green, blue; needs windows. By default all of a TIFF but
            transparency.
        value_range: for images of more than 8 bits, the values that become 0 and 255;
            values beyond are clipped. ``'raw'`` leaves values as they are. Needs
            windows.

    Attributes:
        model: the segmentor.
        classes: names of the classes, in the order of the labels.
        palette: their RGB colors.
        slides: whether windows slide over images.

    Raises:
        ValueError: there is no such device, the checkpoint cannot be read or does not
            fit the config, or the config does not have what prediction needs.
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
        bands: Sequence[int] | None = None,
        value_range: tuple[float, float] | str | None = None,
    ) -> None:
        device = choose_device(device)
        init_default_scope(cfg.get('default_scope') or 'mmseg')
        if batch < 1:
            raise SettingError(f'batch={batch}; give a positive integer')
        slides = slides_windows(
            full_resolution=full_resolution, window=window, stride=stride
        )
        check_values(bands, value_range, slides=slides)
        self._batch = batch
        self._bands, self._is_confident = bands, confidence
        if slides:
            self._load, self._swaps = row_loader(cfg)
            if bands is not None or value_range is not None:
                self._load = None  # it neither chooses bands nor keeps 16 bits
        else:
            self._load, self._transform = build_pipelines(cfg)
        model_cfg = cfg.model
        if slides or confidence:
            asked = 'prediction at full resolution' if slides else 'confidence'
            model_cfg = extended_model(cfg, asked)
        segmentor = model_cfg.get('module', model_cfg)
        if confidence:
            segmentor.test_cfg.confidence = True
        if slides:
            segmentor.test_cfg.update(
                mode='slide',
                batch_windows=batch,
                **windows(cfg, segmentor, window, stride),
            )
        self.slides = slides
        model = build_segmentor(cfg, segmentor)
        self._channels, shown = taken_values(model.data_preprocessor, segmentor)
        self._scale = Scale(value_range, shown)
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
            progress: with sliding windows, a function that is called with the number of
                finished windows and that of all windows.

        Raises:
            PredictionError: the file cannot be read, or the model does not accept the
                image.
        """
        if not self.slides:
            (prediction,) = self._test([self._read(path)])
            return prediction
        with self._opened(path) as source:
            strips = list(self.predict_rows(source, progress=progress))
            size = source.shape[:2]
            confidence = None
            if strips[0].confidence is not None:
                confidence = np.concatenate([strip.confidence for strip in strips])
            return Prediction(
                self._scale.image(source.read(0, size[0])),
                np.concatenate([strip.labels for strip in strips]),
                confidence,
                size,
            )

    __call__ = predict

    def predict_all(
        self, paths: Iterable[str | Path], *, progress: Progress | None = None
    ) -> Iterator[Prediction | PredictionError]:
        """Predict image files; successive images of one size form batches.

        Args:
            progress: see :meth:`predict`.

        Yields:
            For each file, its prediction or the error.
        """
        waiting: list[Sample] = []
        for path in paths:
            try:
                if self.slides:
                    yield self.predict(path, progress=progress)
                    continue
                sample = self._read(path)
            except PredictionError as error:
                yield from self._test_each(waiting)
                waiting = []
                yield error
                continue
            if waiting and waiting[0].image.shape != sample.image.shape:
                yield from self._test_each(waiting)
                waiting = []
            waiting.append(sample)
            if len(waiting) == self._batch:
                yield from self._test_each(waiting)
                waiting = []
        yield from self._test_each(waiting)

    def predict_rows(
        self, source: RowSource, *, progress: Progress | None = None
    ) -> Iterator[Strip]:
        """Predict an image in windows while it is read, in bounded memory.

        Memory grows with the width of the image but not with its height.

        Args:
            source: the image. :class:`~.rows.ArrayRows` wraps an array or a
                ``numpy.memmap``; any :class:`~.rows.RowSource` will do.
            progress: see :meth:`predict`.

        Yields:
            Predictions for the image's rows, from top to bottom.

        Raises:
            SettingError: the predictor does not slide windows.
            PredictionError: the source cannot be read to its end, or the model does not
                accept the image.
        """
        self._require_windows()
        self._scale.check(source.dtype)
        if source.shape[2] != self._channels:
            raise PredictionError(
                f'it has {source.shape[2]} bands, but the model takes {self._channels}'
            )
        windows = Windows(
            source, self.model.data_preprocessor, self._scale, swaps=self._swaps
        )
        strips = self.model.predict_strips(
            windows.cut, windows.size, windows.meta, progress
        )
        row = 0
        while (strip := self._next(strips, source.shape)) is not None:
            labels, confidence = strip
            rows = slice(row, row + len(labels))
            row = rows.stop
            yield Strip(
                rows,
                labels.cpu().numpy().astype(self._label_type),
                None if confidence is None else confidence.float().cpu().numpy(),
            )

    def _next(
        self, strips: Iterator[tuple[Tensor, Tensor | None]], shape: tuple[int, ...]
    ) -> tuple[Tensor, Tensor | None] | None:
        """Return the next strip of an image, or None at its end."""
        try:
            with torch.inference_mode(), without_advice():
                return next(strips, None)
        except PredictionError:
            raise
        except (RuntimeError, ValueError, cv2.error) as error:
            raise refusal(shape, error) from error

    def predict_file(
        self,
        image: str | Path,
        labels: str | Path,
        *,
        confidence: str | Path | None = None,
        overlay: str | Path | None = None,
        opacity: float = 0.6,
        force: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Predict an image file in windows, and write the results while it is read.

        Results are TIFFs or PNG files, by their names. If image and results are TIFFs,
        the results have the image's georeference, and memory grows with the width of
        the image only. PNG files are held in memory until they are complete.

        Args:
            labels: file for the class of each pixel.
            confidence: file for the probability of each label, where 255 is certain.
            overlay: file for the classes over the image; a PNG file has a legend.
            opacity: opacity of the overlay, from 0 to 1.
            force: whether existing files may be replaced.
            progress: see :meth:`predict`.

        Raises:
            SettingError: the predictor does not slide windows, or rasterio is not
                installed.
            PredictionError: the file cannot be read, or the model does not accept the
                image.
            EndOfRows: the file cannot be read to its last row; the message names the
                files with the results so far.
            OSError: a result cannot be written, or exists without ``force``.
        """
        self._require_windows()
        if confidence is not None and not self._is_confident:
            raise SettingError(
                f'confidence={str(confidence)!r} needs a predictor with confidence=True'
            )
        for path in filter(None, (labels, confidence, overlay)):
            if Path(path).resolve() == Path(image).resolve():
                raise SettingError(f'{path} is the image; give its results other names')
        painter = Painter(self.classes, self.palette, opacity)
        outputs: list[tuple[RowSink, Callable[[Strip], np.ndarray]]] = []
        with self._opened(image) as source, ExitStack() as stack:

            def add(path, make, *, bands=(), dtype=np.uint8, finish=np.asarray) -> None:
                if path is not None:
                    sink = row_sink(
                        Path(path),
                        (*source.shape[:2], *bands),
                        dtype,
                        force=force,
                        georeference=getattr(source, 'georeference', None),
                        finish=finish,
                    )
                    outputs.append((stack.enter_context(sink), make))

            def paint(strip: Strip) -> np.ndarray:
                pixels = source.read(strip.rows.start, strip.rows.stop)
                return painter.paint(self._scale.image(pixels), strip.labels)

            add(labels, attrgetter('labels'), dtype=self._label_type)
            add(confidence, lambda strip: eight_bits(strip.confidence))
            add(overlay, paint, bands=(3,), finish=painter.with_legend)
            with keeping_parts([sink for sink, _ in outputs], force=force):
                for strip in self.predict_rows(source, progress=progress):
                    for sink, make in outputs:
                        sink.write(make(strip))

    def _require_windows(self) -> None:
        if not self.slides:
            raise SettingError(
                'predict_rows and predict_file need sliding windows; give the '
                'predictor full_resolution=True or window=PX'
            )

    def _opened(self, path: str | Path) -> AbstractContextManager[RowSource]:
        """Open an image file as a row source."""
        if self._load is None or is_tiff(path):
            return tiff_rows(Path(path), self._bands, self._channels)
        pixels = self._decode(path)['img']
        if self._swaps and pixels.shape[2:] in ((3,), (4,)):
            pixels[..., [0, 2]] = pixels[..., [2, 0]]
        return nullcontext(ArrayRows(pixels))

    def _decode(self, path: str | Path) -> dict:
        """Read an image file as the test pipeline does."""
        try:
            return self._load({'img_path': str(path)})
        # mmcv raises various errors for damaged files.
        except (OSError, AssertionError, AttributeError, cv2.error) as error:
            reason = getattr(error, 'strerror', None) or 'it cannot be decoded'
            raise PredictionError(reason) from error

    def _test_each(
        self, samples: Sequence[Sample]
    ) -> Iterator[Prediction | PredictionError]:
        """Predict images as a batch or, if that fails, one by one."""
        if not samples:
            return
        try:
            yield from self._test(samples)
        except PredictionError as error:
            if len(samples) == 1:
                yield error
                return
            for sample in samples:
                yield from self._test_each([sample])

    def _read(self, path: str | Path) -> Sample:
        """Read an image file and prepare it for the model."""
        sample = self._decode(path)
        image = cv2.cvtColor(sample['img'].astype(np.uint8), cv2.COLOR_BGR2RGB)
        try:
            return Sample(image, self._transform(sample))
        except (RuntimeError, ValueError, cv2.error) as error:
            raise refusal(image.shape, error) from error

    def _test(self, samples: Sequence[Sample]) -> list[Prediction]:
        """Predict images of one size."""
        views = samples[0].prepared['inputs']
        views = views if isinstance(views, list) else [views]
        tested_size = max(tuple(view.shape[-2:]) for view in views)
        try:
            batch = pseudo_collate([sample.prepared for sample in samples])
            with torch.inference_mode(), without_advice():
                results = self._tester.test_step(batch)
        except (RuntimeError, ValueError, cv2.error) as error:
            raise refusal(samples[0].image.shape, error) from error
        return [
            self._prediction(sample.image, result, tested_size)
            for sample, result in zip(samples, results, strict=True)
        ]

    def _prediction(
        self, image: np.ndarray, result: SegDataSample, tested_size: tuple[int, int]
    ) -> Prediction:
        labels = result.pred_sem_seg.data.squeeze(0).cpu().numpy()
        confidence = None
        if 'confidence' in result:
            confidence = result.confidence.data.squeeze(0).float().cpu().numpy()
        return Prediction(
            image, labels.astype(self._label_type), confidence, tested_size
        )

    @property
    def _label_type(self) -> type:
        return np.uint8 if len(self.classes) <= 256 else np.uint16

    def save_pretrained(
        self, folder: str | Path, *, name: str | None = None, force: bool = False
    ) -> None:
        """Write weights, config and model card, for :func:`.load_model`.

        Args:
            folder: created if it does not exist.
            name: name in the model card; the folder by default.
            force: whether existing files may be replaced.

        Raises:
            OSError: a file exists without ``force``, or cannot be written.
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
            repository: ``OWNER/NAME``; created if it does not exist.
            private: whether a new repository is private.

        Returns:
            The repository's URL.

        Raises:
            SharingError: the hub refuses the upload or cannot be reached.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, name=repository, force=True)
            return sharing.upload_segmentor(Path(folder), repository, private=private)


def refusal(shape: tuple[int, ...], error: Exception) -> PredictionError:
    """Return the error for an image that the model does not accept."""
    height, width = shape[:2]
    return PredictionError(
        f'the model does not accept {width}x{height} px ({one_line(error)})'
    )


def taken_values(
    preprocessor: nn.Module, segmentor: Mapping
) -> tuple[int, tuple[float, float]]:
    """Return the number of bands that a segmentor takes, and the range of their values.

    The range is the mean plus and minus twice the standard deviation.

    Args:
        preprocessor: the segmentor's.
        segmentor: its config.
    """
    channels = segmentor['backbone'].get('in_channels', 3)
    mean = getattr(preprocessor, 'mean', None)
    if mean is None:
        return channels, (0, 255)
    spread = 2 * preprocessor.std
    low, high = (mean - spread).min().item(), (mean + spread).max().item()
    return max(channels, len(mean)), (low, high)


def choose_device(name: str) -> str:
    """Return the device to predict on, ``'cpu'`` or ``'cuda'``.

    Raises:
        SettingError: ``name`` is not one of ``DEVICES``, or PyTorch finds no GPU.
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
