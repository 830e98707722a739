"""The metric behind ``tools/test.py --report``.

It keeps the counts of each image, and the label maps of the worst images so far. In the
end, those images are read again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from pathlib import Path

import cv2
import mmengine
import mmseg
import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.logging import MessageHub, print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner

from ..checkpoints.dataset_meta import complete_palette
from ..checkpoints.writing import check_new_folder, naming, replacing
from ..errors import SettingError
from ..registry import HOOKS, METRICS
from ..version import __version__
from .counts import BAND, Pairs, add_up, areas, count_image, ious, mean, ratio
from .report_page import WorstImage, make_page

WORST = 10  # images that the page shows
ABOUT = 'mmseg_twins.Report'  # key of the message hub, which the hook and metric share


@dataclass
class ImageCounts:
    """The counts of an image.

    Attributes:
        pixels: counts of its labels.
        boundaries: counts of its labels near contours.
        iou: the mIoU of the image alone, from 0 to 1; NaN if all pixels are ignored.
        maps: ground truth above prediction, as PNG; None unless it is one of the worst.
    """

    path: str
    pixels: Pairs
    boundaries: Pairs
    iou: float
    maps: bytes | None = None


@METRICS.register_module()
class Report(BaseMetric):
    """Writes a report of a test: an HTML page, ``index.html``, and ``report.json``.

    Scores are those of :class:`mmseg.evaluation.IoUMetric`, and boundary IoU
    (:mod:`mmseg_twins.evaluation.counts`), whose mean is returned as ``mBoundaryIoU``.

    Args:
        output_dir: a new or empty folder.
        ignore_index: label of ignored pixels.
        band: width of the boundaries, as a share of the image's diagonal.
        about: facts for the report, in addition to those of
            :class:`mmseg_twins.ReportCheckpoint`.

    Raises:
        SettingError: the folder is not empty, or an image has no ground truth or one of
            another size.
    """

    default_prefix = ''

    def __init__(
        self,
        output_dir: str,
        ignore_index: int = 255,
        band: float = BAND,
        about: Mapping | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device, prefix)
        self._folder = Path(output_dir)
        check_new_folder(self._folder, 'Report: output_dir')
        self._ignore_index = ignore_index
        self._band = band
        self._about = about or {}
        self._worst: list[ImageCounts] = []

    def process(self, data_batch: dict | None, data_samples: Sequence[dict]) -> None:
        """Count the pixels of a batch's images."""
        count = len(self.dataset_meta['classes'])
        if not self.results:
            self._worst = []
        for sample in data_samples:
            maps = label_maps(sample, count, self._ignore_index)
            pixels, boundaries = count_image(*maps, count, self._band)
            iou = mean(ious(pixels, count))
            image = ImageCounts(sample['img_path'], pixels, boundaries, iou)
            self.results.append(image)
            if not math.isnan(iou):
                self._keep_if_bad(image, maps)

    def _keep_if_bad(self, image: ImageCounts, maps: Sequence[np.ndarray]) -> None:
        """Keep the label maps of an image if it is one of the worst so far."""
        # One more than are shown: mmengine's samplers may repeat an image at the end of
        # a process, and the repetition is dropped later.
        if len(self._worst) > WORST:
            best = max(self._worst, key=attrgetter('iou'))
            if image.iou >= best.iou:
                return
            best.maps = None
            self._worst.remove(best)
        image.maps = cv2.imencode('.png', np.vstack(maps))[1].tobytes()
        self._worst.append(image)

    def compute_metrics(self, results: list[ImageCounts]) -> dict[str, float]:
        """Write the report; return the mean boundary IoU, in percent."""
        meta = self.dataset_meta
        classes = [str(name) for name in meta['classes']]
        palette = complete_palette(meta.get('palette'), len(classes))
        known = MessageHub.get_current_instance().get_info(ABOUT, {})
        numbers = {
            'about': describe(results, {**known, **self._about}),
            'band': self._band,
            **summarize(results, classes, palette),
        }
        kept = filter(attrgetter('maps'), results)
        worst = sorted(kept, key=attrgetter('iou', 'path'))[:WORST]
        page = make_page(numbers, [shown(image, len(classes)) for image in worst])
        with naming(self._folder, 'there is no report'):
            self._folder.mkdir(parents=True, exist_ok=True)
        for name, text in (('report.json', json.dumps(numbers)), ('index.html', page)):
            with replacing(self._folder / name, force=False) as temporary:
                # File names may have bytes that are not valid UTF-8.
                temporary.write_bytes(text.encode('utf-8', 'replace'))
        print_log(f'report: {self._folder / "index.html"}', logger='current')
        boundary = numbers['mBoundaryIoU']
        return {'mBoundaryIoU': math.nan if boundary is None else round(boundary, 2)}


@HOOKS.register_module()
class ReportCheckpoint(Hook):
    """Passes facts about the evaluation to :class:`Report`."""

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Record config, checkpoint, iteration and dataset."""
        model = runner.model
        while is_model_wrapper(model):
            model = model.module
        is_tta = isinstance(model, BaseTTAModel)
        loader = runner.cfg.get('test_dataloader') or {}
        about = {
            'config': runner.cfg.filename,
            'checkpoint': runner.cfg.get('load_from'),
            'iteration': (checkpoint.get('meta') or {}).get('iter'),
            'test-time augmentation': 'yes' if is_tta else 'no',
            'dataset': loader.get('dataset', {}).get('type'),
        }
        runner.message_hub.update_info(ABOUT, about, resumed=False)


def label_maps(
    sample: Mapping, count: int, ignore_index: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return ground truth and prediction of an image for :func:`.count_image`.

    Raises:
        SettingError: there is no ground truth, or it has another size.
    """
    name = sample['img_path']
    if 'gt_sem_seg' not in sample:
        raise SettingError(
            f'Report: {name} has no ground truth; add LoadAnnotations to the test '
            'pipeline, and annotations to the dataset'
        )
    truth, prediction = (
        sample[key]['data'].cpu().numpy() for key in ('gt_sem_seg', 'pred_sem_seg')
    )
    truth, prediction = (part.reshape(part.shape[-2:]) for part in (truth, prediction))
    if truth.shape != prediction.shape:
        sizes = ['{1}x{0} px'.format(*part.shape) for part in (truth, prediction)]
        raise SettingError(
            f'Report: the ground truth of {name} has {sizes[0]} and its prediction '
            f'{sizes[1]}; put LoadAnnotations after Resize in the test pipeline, so '
            'that annotations keep their size'
        )
    ignored = truth == ignore_index
    truth, prediction = (
        np.where((part >= 0) & (part < count), part, count).astype(
            np.uint8 if count < 255 else np.uint16
        )
        for part in (truth, prediction)
    )
    truth[ignored] = count + 1
    return truth, prediction


def shown(image: ImageCounts, count: int) -> WorstImage:
    """Return an image for the page."""
    content = np.frombuffer(image.maps, np.uint8)
    maps = np.split(cv2.imdecode(content, cv2.IMREAD_UNCHANGED), 2)
    return WorstImage(image.path, ious(image.pixels, count), *maps)


def describe(results: Sequence[ImageCounts], about: Mapping) -> dict:
    """Return the facts about an evaluation: data, checkpoint and versions."""
    folders = {os.path.dirname(image.path) for image in results}
    return {
        **{name: value for name, value in about.items() if value is not None},
        'folder': os.path.commonpath(folders) if folders else '',
        'images': len(results),
        'date': datetime.now().astimezone().strftime('%Y-%m-%d %H:%M %z'),
        'versions': f'mmseg_twins {__version__}, mmsegmentation {mmseg.__version__}, '
        f'mmengine {mmengine.__version__}, torch {torch.__version__}',
    }


def summarize(
    results: Sequence[ImageCounts],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> dict:
    """Return all scores, in percent; None for classes without pixels."""
    count = len(classes)
    pixels = add_up([image.pixels for image in results], count)
    boundaries = add_up([image.boundaries for image in results], count)
    both, truth, prediction = areas(pixels, count)
    scores = {
        'IoU': ious(pixels, count),
        'Acc': ratio(both, truth),
        'Precision': ratio(both, prediction),
        'BoundaryIoU': ious(boundaries, count),
    }
    shares = ratio(truth, np.full_like(truth, truth.sum()))
    flat = np.zeros((count + 1) ** 2, np.int64)
    flat[pixels[0]] = pixels[1]
    confusion = flat.reshape(count + 1, count + 1)
    order = sorted(results, key=lambda one: (math.isnan(one.iou), one.iou, one.path))
    return {
        'aAcc': percent(ratio(both.sum(keepdims=True), truth.sum(keepdims=True))[0]),
        **{f'm{key}': percent(mean(values)) for key, values in scores.items()},
        'classes': [
            {
                'name': name,
                'color': list(palette[index]),
                'share': percent(shares[index]),
                **{key: percent(values[index]) for key, values in scores.items()},
            }
            for index, name in enumerate(classes)
        ],
        'confusion': confusion[:count, :count].tolist(),
        'pixels_of_no_class': int(confusion[count].sum()),
        'images': [{'path': image.path, 'mIoU': percent(image.iou)} for image in order],
    }


def percent(value: float) -> float | None:
    """Return a share in percent; None for NaN, which JSON does not have."""
    return None if math.isnan(value) else 100 * float(value)
