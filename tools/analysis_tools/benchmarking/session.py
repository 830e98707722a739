"""Runs one implementation of a case: time, outputs, memory and operations.

A segmentor's training step is mmengine's: forward pass, losses, backward pass and
optimizer step, with the optimizer of its config. A backbone's is the forward and the
backward pass, for fixed gradients of its maps.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import logging
import math
import re
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor, nn
from torch.utils import flop_counter

from benchmarking.cases import Case, Settings
from benchmarking.machine import DTYPES, process_memory, reset_peak_memory
from benchmarking.models import build_model, load_weights
from mmseg_twins.models.backbones.blocks import Block

NUM_CLASSES, IGNORED = 150, 255
# How many numbers of each parameter's gradient are compared.
GRADIENT_SAMPLES = 10_000
# Keeps gradients of a mean over many pixels in fp16's range; exact, as a power of two.
CHECK_LOSS_SCALE = 1024
# Duration of a turn on a GPU, in seconds, and its maximum number of steps. The time of
# a single step would include launch latency, which training overlaps with other steps.
TURN, MAX_STEPS = 0.1, 50
# Messages of PyTorch, oneDNN and the C++ library if memory is exhausted.
NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|bad_alloc"
)

Outputs = dict[str, list[np.ndarray]]


@dataclass(frozen=True)
class Job:
    """The job of one process.

    Attributes:
        implementation: one of ``models.IMPLEMENTATIONS``.
        case: the case to measure.
        weights: path of the state dict to load.
        compiled: whether to compile the model.
    """

    implementation: str
    case: Case
    weights: str
    settings: Settings
    compiled: bool = False

    @property
    def name(self) -> str:
        """The name in tables."""
        return self.implementation + (' compiled' if self.compiled else '')


class Session:
    """Runs a job in the current process."""

    def __init__(self, job: Job) -> None:
        settings = job.settings
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        # As mmsegmentation's default_runtime.py, which every config inherits.
        torch.backends.cudnn.benchmark = True
        self.job, self.case, self.seed = job, job.case, settings.seed
        self.device = torch.device(settings.device)
        torch.manual_seed(self.seed)
        model, cfg = build_model(job.implementation, job.case)
        load_weights(model, torch.load(job.weights, weights_only=True))
        self.model = model.to(self.device).train(job.case.mode == 'train')
        self.no_grad = (
            torch.inference_mode if settings.inference_mode else torch.no_grad
        )
        self.images, self.samples = make_batch(job.case, self.device, self.seed)
        self.gradients: list[Tensor] | None = None
        if job.case.mode == 'train' and job.case.head != 'none':
            self.optimizer = make_optimizer(model, cfg, job)
        # As mmengine's runner compiles a model for its setting `compile=True`.
        self.forward = torch.compile(model.forward) if job.compiled else model.forward
        self.level: int | None = None  # bytes, before the first run
        self.warm = False
        self.steps = 1  # per run

    def load(self) -> int:
        """Return the number of trainable parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def warm_up(self) -> int | None:
        """Run once; the first time, return the number of floating-point operations."""
        if self.warm:
            self.run()
            return None
        self.warm = True
        release_unused(self.device)
        self.level = process_memory('VmRSS')
        forward, self.forward = self.forward, self.model.forward
        flops = count_flops(self.step)
        self.forward = forward
        if self.job.compiled:  # operations were counted in eager mode
            self.step()
        synchronize(self.device)
        return flops

    def start(self) -> None:
        """End the warm-up: the peak of memory is measured from now on."""
        if self.device.type == 'cuda':
            self.steps = steps_of_turn(self.run())
            torch.cuda.reset_peak_memory_stats(self.device)
        elif not reset_peak_memory():
            self.level = None

    def run(self) -> float:
        """Run, on a GPU several steps; return the seconds per step."""
        start = time.perf_counter()
        for _ in range(self.steps):
            self.step()
        synchronize(self.device)
        return (time.perf_counter() - start) / self.steps

    def peak_memory(self) -> int | None:
        """Return the peak of memory since :meth:`start`, in bytes, if it is known."""
        if self.device.type == 'cuda':
            return torch.cuda.max_memory_allocated(self.device)
        peak = process_memory('VmHWM')
        return peak and self.level and max(peak - self.level, 0)

    def step(self) -> None:
        """Run one step of the case's mode; a GPU may not have finished it."""
        if self.case.mode != 'train':
            with self.no_grad(), self.autocast():
                self.infer()
        elif self.case.head == 'none':
            with self.autocast():
                maps = self.forward(self.images)
            self.gradients = self.gradients or make_gradients(maps, self.seed)
            torch.autograd.backward(maps, self.gradients)
            self.model.zero_grad()
        else:
            with self.autocast():
                loss = self.loss(self.images, self.samples)
            self.optimizer.update_params(loss)

    def infer(self) -> object:
        """Return feature maps, predictions or logits."""
        if self.case.head == 'none':
            return self.forward(self.images)
        if self.case.mode == 'logits':
            return self.forward(self.images, mode='tensor')
        return self.forward(self.images, mode='predict')

    def loss(self, images: Tensor, samples: Sequence[SegDataSample]) -> Tensor:
        """Return a segmentor's loss, summed up as by mmengine."""
        losses = self.forward(images, list(samples), mode='loss')
        return self.model.parse_losses(losses)[0]

    def autocast(self) -> torch.autocast:
        """Return the autocast context of the case."""
        enabled = self.case.dtype != 'fp32'
        dtype = DTYPES[self.case.dtype] if enabled else None
        return torch.autocast(self.device.type, dtype=dtype, enabled=enabled)

    def outputs(self) -> Outputs:
        """Compute the outputs to compare between implementations.

        Returns:
            ``maps`` or ``logits`` in evaluation, and for training ``loss`` and
            ``gradients`` (some numbers of each parameter's, sorted by name), in
            float32; computed without TF32.
        """
        checked = self.case.at_check_size()
        images, samples = make_batch(checked, self.device, self.seed)
        is_backbone = self.case.head == 'none'
        result: Outputs = {}
        with torch.backends.cudnn.flags(allow_tf32=False):
            self.model.eval()
            with self.no_grad(), self.autocast():
                # A segmentor's forward returns logits by default.
                maps = self.forward(images)
            if is_backbone:
                result['maps'] = to_arrays(maps)
            else:
                result['logits'] = to_arrays([maps])
            if self.case.mode == 'train':
                make_repeatable(self.model.train())
                with self.autocast():
                    made = (
                        self.forward(images)
                        if is_backbone
                        else self.loss(images, samples)
                    )
                if is_backbone:
                    torch.autograd.backward(made, make_gradients(made, self.seed))
                else:
                    result['loss'] = to_arrays([made])
                    (made * CHECK_LOSS_SCALE).backward()
                result['gradients'] = to_arrays(sampled_gradients(self.model))
                self.model.zero_grad()
        self.model.train(self.case.mode == 'train')
        # Otherwise a comparison at another size would make the compiler generate code
        # for dynamic sizes.
        torch.compiler.reset()
        return result


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def steps_of_turn(seconds: float) -> int:
    """Return the number of steps in a turn, given the seconds per step."""
    return min(max(math.ceil(TURN / seconds), 1), MAX_STEPS)


def make_batch(
    case: Case, device: torch.device, seed: int
) -> tuple[Tensor, list[SegDataSample]]:
    """Make random normalized images, and labels, a tenth of which are ignored."""
    generator = torch.Generator().manual_seed(seed)
    size = (case.height, case.width)
    images = torch.randn(case.batch, 3, *size, generator=generator)
    labels = torch.randint(NUM_CLASSES, (case.batch, 1, *size), generator=generator)
    ignored = torch.rand(labels.shape, generator=generator) < 0.1
    labels = labels.masked_fill(ignored, IGNORED).to(device)
    meta = dict(img_shape=size, ori_shape=size, pad_shape=size)
    samples = [
        SegDataSample(gt_sem_seg=PixelData(data=label), metainfo=meta)
        for label in labels
    ]
    return images.to(device), samples


def make_gradients(maps: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Make fixed gradients of feature maps, with the maps' memory format."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.empty_like(x).copy_(torch.randn(x.shape, generator=generator))
        for x in maps
    ]


def make_optimizer(model: nn.Module, cfg: Config, job: Job) -> OptimWrapper:
    """Build the optimizer of a config, with loss scaling for fp16."""
    settings = cfg.optim_wrapper.copy()
    if job.case.dtype == 'fp16' and job.settings.device == 'cuda':
        # Starts low, so that no measured step is skipped because of an overflow.
        scale = dict(init_scale=float(CHECK_LOSS_SCALE))
        settings.update(type='AmpOptimWrapper', dtype='float16', loss_scale=scale)
    return build_optim_wrapper(model, settings)


def make_repeatable(model: nn.Module) -> None:
    """Disable the parts that make a training step random or ill-conditioned.

    These are dropout, stochastic depth, and the batch statistics of batch norms: after
    UPerNet's 1x1 pooling, a channel has one value per image, and dividing by the spread
    of so few values amplifies rounding errors.
    """
    kinds = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)
    for module in model.modules():
        # mmcv and timm each have their own DropPath.
        if isinstance(module, kinds) or type(module).__name__ == 'DropPath':
            module.eval()
        elif isinstance(module, Block):
            module.drop_path_rate = 0.0


def sampled_gradients(model: nn.Module) -> list[Tensor]:
    """Return evenly spaced numbers of each parameter's gradient, sorted by name."""
    samples = []
    for _, parameter in sorted(model.named_parameters()):
        # mmsegmentation's modules have unused parameters.
        if parameter.grad is not None:
            flat = parameter.grad.flatten()
            samples.append(flat[:: -(-flat.numel() // GRADIENT_SAMPLES)])
    return samples


def to_arrays(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """Copy tensors to float32 arrays.

    Tensors would be sent to the other process in shared memory, which is often scarce
    in containers.
    """
    return [x.detach().float().cpu().numpy().copy() for x in tensors]


def release_unused(device: torch.device) -> None:
    """Release unused memory."""
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.empty_cache()
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc keeps freed memory otherwise


def convolution_backward_flops(
    gradient: Sequence[int], x: Sequence[int], weight: Sequence[int], *args, **_
) -> int:
    """Count a convolution's gradients: one forward pass each for x and weight.

    For convolutions with C groups, such as the depth-wise ones of Twins, PyTorch's own
    formula counts the gradient of the weight C times.
    """
    transposed, wanted = args[4], args[7]
    places = x if transposed else gradient
    forward = 2 * places[0] * math.prod(places[2:]) * math.prod(weight)
    return forward * sum(map(bool, wanted[:2]))


def attention_flops(query, key, value, *_, **__) -> int:
    """Count fused attention, of (B, heads, L, C / heads) each."""
    return flop_counter.sdpa_flop_count(query, key, value)


def attention_backward_flops(gradient, query, key, value, *_, **__) -> int:
    """Count the gradients of fused attention, which recomputes the scores."""
    return flop_counter.sdpa_backward_flop_count(gradient, query, key, value)


# Operations that PyTorch's counter does not know or counts wrongly.
FLOPS = {
    'convolution_backward': convolution_backward_flops,
    '_scaled_dot_product_flash_attention_for_cpu': attention_flops,
    '_scaled_dot_product_flash_attention_for_cpu_backward': attention_backward_flops,
}


def count_flops(step: Callable[[], object]) -> int:
    """Run a step and count its floating-point operations.

    Matrix products, convolutions and attention are counted as executed, with two
    operations for a multiplication and its addition. Products with padding, and
    recomputations in a backward pass, count as well.
    """
    mapping = {getattr(torch.ops.aten, name): count for name, count in FLOPS.items()}
    with flop_counter.FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        step()
    return counter.get_total_flops()


# In the process of a worker


def begin() -> None:
    """Prepare the process: the parent handles Ctrl-C, and warnings are silenced."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)


@functools.cache
def session(job: Job) -> Session:
    """Return the session of a job, which is created once."""
    return Session(job)


def call(job: Job, method: str) -> object:
    """Call a method of the job's session.

    Raises:
        MemoryError: it ran out of memory.
        RuntimeError: it failed for another reason; the message is one line.
    """
    try:
        return getattr(session(job), method)()
    except Exception as error:
        lines = str(error).strip().splitlines() or ['']
        message = f'{type(error).__name__}: {lines[0][:200]}'.removesuffix(': ')
        no_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if no_memory or NO_MEMORY.search(str(error)):
            raise MemoryError(message) from None
        raise RuntimeError(message) from None
