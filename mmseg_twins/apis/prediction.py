"""Predict image files with a segmentor, and pass it on.

Unlike mmsegmentation's ``init_model`` and ``MMSegInferencer``, weights that do not fit
the config are an error instead of a line in the log, nothing in a checkpoint can run,
and test-time augmentation works.
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
from ..checkpoints.reading import read_source
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
    windows,
)

DEVICES = ('auto', 'cpu', 'cuda')


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


class Strip(NamedTuple):
    """Some rows of an image, and what is predicted of them.

    Args:
        rows: of the image.
        labels: (rows, W), as of a :class:`Prediction`.
        confidence: (rows, W) float32, likewise, or None.
    """

    rows: slice
    labels: np.ndarray
    confidence: np.ndarray | None


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
        bands: the numbers of the bands that the model takes, from 1, with windows;
            colors in the order red, green, blue. By default all of a TIFF, without
            transparency.
        value_range: the values that become 0 and 255 where values have more than 8
            bits, with windows; those beyond them become 0 and 255 too. ``'raw'`` where
            the model takes them as they are.

    Attributes:
        model: the segmentor.
        classes: names of the classes, in the order of the labels.
        palette: their RGB colors.
        slides: whether windows slide over images.

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
        bands: Sequence[int] | None = None,
        value_range: tuple[float, float] | str | None = None,
    ) -> None:
        device = choose_device(device)
        init_default_scope(cfg.get('default_scope') or 'mmseg')
        if batch < 1:
            raise SettingError(f'batch={batch}; give a positive number')
        slides = full_resolution or window is not None or stride is not None
        check_values(bands, value_range, slides=slides)
        self._batch = batch
        self._bands, self._is_confident = bands, confidence
        if slides:
            self._load, self._swaps = row_loader(cfg)
            if bands is not None or value_range is not None:
                self._load = None  # which neither chooses bands nor keeps 16 bits
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
            path: the file.
            progress: is called with the number of windows done, and of all windows,
                where windows slide over the image.

        Raises:
            PredictionError: the file cannot be read, or the model does not take the
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
                self._scale.picture(source.read(0, size[0])),
                np.concatenate([strip.labels for strip in strips]),
                confidence,
                size,
            )

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

        Memory grows with the width of the image and not with its height.

        Args:
            source: the image; :class:`~.rows.ArrayRows` makes one of an array or of a
                ``numpy.memmap``. Anything does that has its ``shape``, ``dtype`` and
                ``read``.
            progress: see :meth:`predict`.

        Yields:
            The image's rows from top to bottom, as soon as they are predicted.

        Raises:
            SettingError: the predictor has no windows.
            PredictionError: the source cannot be read to its end, or the model does not
                take the image.
        """
        self._require_windows()
        self._scale.check(source.dtype)
        if source.shape[2] != self._channels:
            raise PredictionError(
                f'it has {source.shape[2]} bands, and the model takes {self._channels}'
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

        Results that are TIFFs have the georeference of an image that is one, and memory
        grows with the width of the image only, if it is one as well. Those that are PNG
        files, by their name, are held in memory, 8 bits a pixel.

        Args:
            image: the file.
            labels: file for the class of each pixel.
            confidence: file for the labels' probabilities, of which 255 is certain.
            overlay: file for the classes painted over the image; a PNG file has a
                legend.
            opacity: of the overlay, from 0 to 1.
            force: whether existing files may be replaced.
            progress: see :meth:`predict`.

        Raises:
            SettingError: the predictor has no windows, or rasterio is not installed.
            PredictionError: the file cannot be read, or the model does not take the
                image.
            EndOfRows: the file cannot be read to its last row; the rows so far are in
                files of their own, which the message names.
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
                return painter.paint(self._scale.picture(pixels), strip.labels)

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
                'rows and files of results need windows; give the predictor '
                'full_resolution=True or window=PX'
            )

    def _opened(self, path: str | Path) -> AbstractContextManager[RowSource]:
        """Return the rows of an image file."""
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
        # mmcv raises different errors for damaged files.
        except (OSError, AssertionError, AttributeError, cv2.error) as error:
            reason = getattr(error, 'strerror', None) or 'it cannot be decoded'
            raise PredictionError(reason) from error

    def _test_each(
        self, samples: Sequence[Sample]
    ) -> Iterator[Prediction | PredictionError]:
        """Predict images together or, where that fails, one by one."""
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


def refusal(shape: tuple[int, ...], error: Exception) -> PredictionError:
    """Return the error for an image that the model does not take."""
    height, width = shape[:2]
    return PredictionError(
        f'the model does not take {width}x{height} px '
        f'({str(error).strip().splitlines()[0]})'
    )


def taken_values(
    preprocessor: nn.Module, segmentor: Mapping
) -> tuple[int, tuple[float, float]]:
    """Return how many bands a segmentor takes, and the range of most of their values.

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
