"""Whether the memory of a training stays level.

A narrow model of a recipe's kind is trained for many steps: mmengine's ``train_step``
with the recipe's loss and optimizer, on random images whose size changes from step to
step. What is left behind in every step shows as a slope of the process's memory; its
width does not matter for that.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from benchmarking.memory import process_memory
from benchmarking.models import PACKAGE, read_config
from mmengine.config import Config
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from pressuring.alone import Ending, Tell, run_alone

WIDTHS, NUM_HEADS, DEPTHS = [16, 32, 64, 128], [1, 2, 4, 8], [2, 2, 2, 2]
CHANNELS = 32  # of heads
SIZES = ((64, 64), (64, 96), (96, 96), (128, 64))
BATCH, NUM_CLASSES, IGNORED = 2, 150, 255
# The share of the steps that is left out: caches and the allocator's pools fill.
WARM_UP = 0.25
MIN_STEPS = 20
MAX_GROWTH = 16_000_000


@dataclass(frozen=True)
class TrainingJob:
    """One training.

    Attributes:
        variant: the kind of backbone, such as ``'svt-s'``.
        head: ``'uperhead'`` or ``'fpn'``.
        steps: how many, at least ``MIN_STEPS``.
        threads: threads of PyTorch; None for its own choice.
        seed: of weights, images and labels.
    """

    variant: str
    head: str
    steps: int
    threads: int | None = None
    seed: int = 0

    @property
    def title(self) -> str:
        """Model and steps, such as ``svt-s uperhead, 200 steps``."""
        return f'{self.variant} {self.head}, {self.steps} steps'


def measure(job: TrainingJob, *, max_memory: int | None = None, progress) -> Ending:
    """Trains in a process of its own.

    Args:
        job: what.
        max_memory: bytes that training may add to the process; None for any.
        progress: is told how far it is.

    Returns:
        Its value is what :func:`train` returns.
    """
    return run_alone(train, job, max_growth=max_memory, progress=progress)


def train(job: TrainingJob, tell: Tell) -> dict:
    """Trains in this process.

    Args:
        job: what.
        tell: is told this process's memory before the first step, and progress.

    Returns:
        ``memory_bytes`` of the process and ``losses``, after each step.
    """
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    cfg = narrow_config(job)
    model = build_segmentor(cfg)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    tell('level', process_memory('VmRSS'))
    memory, losses = [], []
    for step in range(job.steps):
        batch = make_batch(*SIZES[step % len(SIZES)])
        losses.append(model.train_step(batch, optimizer)['loss'].item())
        memory.append(process_memory('VmRSS'))
        if (step + 1) % 20 == 0:
            tell('progress', f'{job.title}: step {step + 1}')
    return {'memory_bytes': memory, 'losses': losses}


def narrow_config(job: TrainingJob) -> Config:
    """The recipe, made narrow, for images of any size."""
    cfg = read_config(PACKAGE, job.variant, job.head)
    model = cfg.model
    model.data_preprocessor.update(size=None, size_divisor=32)
    model.backbone.update(embed_dims=WIDTHS, num_heads=NUM_HEADS, depths=DEPTHS)
    if job.head == 'fpn':
        model.neck.update(in_channels=WIDTHS, out_channels=CHANNELS)
        model.decode_head.update(in_channels=[CHANNELS] * 4, channels=CHANNELS)
    else:
        model.decode_head.update(in_channels=WIDTHS, channels=CHANNELS)
        model.auxiliary_head.update(in_channels=WIDTHS[2], channels=CHANNELS)
    return cfg


def build_segmentor(cfg: Config) -> BaseModel:
    """The config's segmentor with random weights, ready to be trained."""
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model)
    return revert_sync_batchnorm(model).train()


def make_batch(height: int, width: int) -> dict:
    """Random images and labels, some to be ignored, as a data loader gives them."""
    size = (height, width)
    images, samples = [], []
    for _ in range(BATCH):
        images.append(torch.randint(256, (3, *size), dtype=torch.uint8))
        labels = torch.randint(NUM_CLASSES, (1, *size))
        labels[torch.rand(labels.shape) < 0.1] = IGNORED
        meta = dict(img_shape=size, ori_shape=size, pad_shape=size)
        samples.append(SegDataSample(gt_sem_seg=PixelData(data=labels), metainfo=meta))
    return {'inputs': images, 'data_samples': samples}


@dataclass(frozen=True)
class Growth:
    """How memory goes after the warm-up.

    Attributes:
        warm_up: steps that are left out.
        first: bytes after the warm-up, on the fitted line.
        slope: bytes for each step, of a line fitted by least squares.
        total: bytes that the line rises by.
    """

    warm_up: int
    first: float
    slope: float
    total: float


def growth_of(memory: Sequence[int]) -> Growth:
    """Fits a line to the memory after each step.

    Args:
        memory: bytes after each of at least ``MIN_STEPS`` steps.
    """
    warm_up = int(WARM_UP * len(memory))
    steps = range(warm_up, len(memory))
    slope, start = statistics.linear_regression(steps, memory[warm_up:])
    return Growth(warm_up, start + slope * warm_up, slope, slope * (len(steps) - 1))


def as_dict(job: TrainingJob, ending: Ending) -> dict:
    """A training and what came of it, as plain values."""
    value = ending.value or {'memory_bytes': [], 'losses': []}
    growth = asdict(growth_of(value['memory_bytes'])) if ending.value else None
    return {
        **asdict(job),
        'status': ending.status,
        'message': ending.message,
        'growth': growth,
        **value,
    }
