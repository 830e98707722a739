"""The memory and time of predicting one image.

The prediction is ``test_step``, as mmsegmentation's test and its ``inference_model``
run it: normalization, network, logits at the image's size, and the class of each pixel.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from benchmarking.memory import PeakMemory
from benchmarking.models import PACKAGE, read_config
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from pressuring.alone import OK, Ending, Tell, above, run_alone

WHOLE, SLIDE = 'whole', 'slide'
MODES = {
    WHOLE: 'the image at once',
    SLIDE: "mmsegmentation's sliding windows, for images larger than one",
}
HEADS = {'uperhead': 'UPerNet', 'fpn': 'Semantic FPN'}
SIZES = (
    (32, 32),
    (75, 100),
    (256, 256),
    (333, 500),
    (512, 512),
    (1024, 1024),
    (1024, 2048),
    (1501, 2003),
    (2048, 4096),
)
# The first calls load code and make threads, which is no matter of the image.
WARM_UP = (64, 64)
# Seconds after which an image is not predicted once more.
ENOUGH = 5.0


@dataclass(frozen=True)
class Job:
    """One image to predict.

    Attributes:
        variant: the backbone, such as ``'svt-s'``.
        head: one of ``HEADS``.
        mode: one of ``MODES``.
        height: of the image, in pixels.
        width: of the image, in pixels.
        crop: side of a sliding window, in pixels.
        stride: from one window to the next, in pixels.
        runs: how often it is predicted at most.
        threads: threads of PyTorch; None for its own choice.
        seed: of weights and pixels.
    """

    variant: str
    head: str
    mode: str
    height: int
    width: int
    crop: int = 512
    stride: int = 341
    runs: int = 3
    threads: int | None = None
    seed: int = 0

    @property
    def megapixels(self) -> float:
        """Size of the image in millions of pixels."""
        return self.height * self.width / 1e6

    @property
    def windows(self) -> int:
        """How many pieces of the image go through the network."""
        if self.mode == WHOLE:
            return 1
        return math.prod(
            max(math.ceil((side - self.crop) / self.stride), 0) + 1
            for side in (self.height, self.width)
        )

    @property
    def title(self) -> str:
        """Everything in a line, such as ``svt-s uperhead, 512x512, whole``."""
        return f'{self.variant} {self.head}, {self.height}x{self.width}, {self.mode}'


def make_jobs(
    *,
    variant: str,
    heads: Sequence[str],
    modes: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    **others,
) -> list[Job]:
    """Jobs for every combination, without windows for images that fit into one.

    Args:
        variant: the backbone.
        heads: of ``HEADS``.
        modes: of ``MODES``.
        sizes: (height, width) in pixels.
        others: further fields of :class:`Job`.
    """
    jobs = [
        Job(variant, head, mode, height, width, **others)
        for head, mode, (height, width) in itertools.product(
            dict.fromkeys(heads), dict.fromkeys(modes), dict.fromkeys(sizes)
        )
    ]
    return [job for job in jobs if job.mode == WHOLE or job.windows > 1]


def measure(job: Job, *, max_memory: int | None = None) -> Ending:
    """Predicts an image in a process of its own.

    Args:
        job: which image, by what.
        max_memory: bytes that the prediction may add to the process; None for any.

    Returns:
        Its value is what :func:`predict` returns.
    """
    ending = run_alone(predict, job, max_growth=max_memory)
    # A short peak may pass between two looks at the process.
    if ending.status == OK and max_memory is not None:
        if (ending.value['peak_memory_bytes'] or 0) > max_memory:
            return above(max_memory)
    return ending


def predict(job: Job, tell: Tell) -> dict:
    """Predicts an image in this process.

    Args:
        job: which image, by what.
        tell: is told this process's memory before the prediction.

    Returns:
        ``peak_memory_bytes``, what the process grows by at its peak, or None where
        the system does not tell; and ``seconds`` of each prediction.
    """
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    model = build_segmentor(job)
    with torch.no_grad():
        model.test_step(make_batch(*WARM_UP))
        batch = make_batch(job.height, job.width)
        memory = PeakMemory(torch.device('cpu'))
        tell('level', memory.level)
        memory.reset()
        seconds = []
        while len(seconds) < job.runs and sum(seconds) < ENOUGH:
            start = time.perf_counter()
            (sample,) = model.test_step(batch)
            seconds.append(time.perf_counter() - start)
            shape = tuple(sample.pred_sem_seg.data.shape)
            if shape != (1, job.height, job.width):
                raise RuntimeError(f'the prediction has shape {shape}')
            # What one prediction leaves is not to stand beside the next.
            del sample.seg_logits, sample.pred_sem_seg
    return {'peak_memory_bytes': memory.read(), 'seconds': seconds}


def build_segmentor(job: Job) -> BaseModel:
    """The recipe's segmentor with random weights, ready to predict."""
    cfg = read_config(PACKAGE, job.variant, job.head).model
    cfg.test_cfg = dict(mode=job.mode)
    if job.mode == SLIDE:
        cfg.test_cfg.update(crop_size=(job.crop,) * 2, stride=(job.stride,) * 2)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg)
    return revert_sync_batchnorm(model).eval()


def make_batch(height: int, width: int) -> dict:
    """A random image, as a data loader gives it."""
    size = (height, width)
    meta = dict(img_shape=size, ori_shape=size, pad_shape=size)
    return {
        'inputs': [torch.randint(256, (3, *size), dtype=torch.uint8)],
        'data_samples': [SegDataSample(metainfo=meta)],
    }


def as_dict(job: Job, ending: Ending) -> dict:
    """A job and what came of it, as plain values."""
    value = ending.value or {'peak_memory_bytes': None, 'seconds': []}
    return {
        **asdict(job),
        'megapixels': job.megapixels,
        'windows': job.windows,
        'status': ending.status,
        'message': ending.message,
        **value,
    }


def is_of(result: Mapping, job: Job) -> bool:
    """Whether a result of :func:`as_dict` is one of a job like this."""
    fields = asdict(job)
    if job.mode == WHOLE:
        del fields['crop'], fields['stride']
    return all(result.get(name) == value for name, value in fields.items())
