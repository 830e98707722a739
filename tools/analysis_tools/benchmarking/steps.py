"""What one run does, and what it computes.

A segmentor's training step is mmengine's: forward, loss, backward, optimizer, with
the optimizer and the weight decay of its own config. A backbone's is its forward and
backward pass for fixed gradients of its maps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
import torch
from mmcv.cnn.bricks.drop import DropPath
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from benchmarking.agreement import Outputs
from benchmarking.cases import Case

AUTOCAST = {'fp32': None, 'bf16': torch.bfloat16, 'fp16': torch.float16}
NUM_CLASSES, IGNORED = 150, 255
# Numbers of each parameter's gradient that are compared.
GRADIENT_SAMPLES = 10_000
# Keeps gradients of a mean over many pixels in fp16's range; exact, a power of two.
CHECK_LOSS_SCALE = 1024


class Steps:
    """A model with input, and what can be done with them.

    Args:
        model: on ``device``.
        case: what is measured.
        device: where.
        cfg: the config of the model, whose optimizer a training step takes.
        seed: of images, labels and gradients.
        inference_mode: whether inference runs under ``torch.inference_mode`` instead
            of ``torch.no_grad``.
        compiled: whether the model runs compiled.
    """

    def __init__(
        self,
        model: nn.Module,
        case: Case,
        *,
        device: torch.device,
        cfg: Config | None = None,
        seed: int = 0,
        inference_mode: bool = False,
        compiled: bool = False,
    ) -> None:
        self.model = model.train(case.mode == 'train')
        self.case = case
        self.device = device
        self.seed = seed
        self.without_gradients = (
            torch.inference_mode if inference_mode else torch.no_grad
        )
        self.images, self.samples = make_batch(case, device, seed)
        self.gradients: list[Tensor] | None = None
        self.optimizer = None
        if case.mode == 'train' and case.head != 'none':
            self.optimizer = make_optimizer(model, cfg, case.dtype, device)
        # As mmengine's runner compiles a model for its setting `compile=True`.
        self.forward = torch.compile(model.forward) if compiled else model.forward

    def run(self) -> None:
        """Does the case's step once, to the end."""
        if self.case.mode != 'train':
            with self.without_gradients(), self.autocast():
                self.infer()
        elif self.case.head == 'none':
            self.train_backbone()
        else:
            self.train_segmentor()
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)

    def infer(self) -> object:
        """Feature maps, predictions or logits, as the case's mode says."""
        if self.case.head == 'none':
            return self.forward(self.images)
        mode = 'predict' if self.case.mode == 'inference' else 'tensor'
        return self.forward(self.images, mode=mode)

    def train_backbone(self) -> None:
        """Forward and backward pass."""
        with self.autocast():
            maps = self.forward(self.images)
        if self.gradients is None:
            self.gradients = make_gradients(maps, self.seed)
        torch.autograd.backward(maps, self.gradients)
        self.model.zero_grad()

    def train_segmentor(self) -> None:
        """Forward pass, loss, backward pass and optimizer, as mmengine does it."""
        with self.autocast():
            losses = self.forward(self.images, self.samples, mode='loss')
            loss, _ = self.model.parse_losses(losses)
        self.optimizer.update_params(loss)

    def autocast(self) -> contextlib.AbstractContextManager:
        """The case's autocast."""
        dtype = AUTOCAST[self.case.dtype]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def outputs(self) -> Outputs:
        """Computes what implementations must agree on.

        Size and batch are those of the case where the built-in is right there.

        Returns:
            ``maps`` or ``logits`` in evaluation, and for training ``loss`` and
            ``gradients`` of the parameters (at most 10,000 numbers of each) in order
            of their names, in float32; computed without TF32.
        """
        case = self.case.at_check_size()
        images, samples = make_batch(case, self.device, self.seed)
        is_backbone = case.head == 'none'
        result = {}
        with full_precision():
            self.model.eval()
            with self.without_gradients(), self.autocast():
                maps = self.forward(images)
            maps = list(maps) if is_backbone else [maps]
            result['maps' if is_backbone else 'logits'] = to_arrays(maps)
            if case.mode == 'train':
                make_repeatable(self.model.train())
                with self.autocast():
                    if is_backbone:
                        maps = self.forward(images)
                    else:
                        losses = self.forward(images, samples, mode='loss')
                        loss, _ = self.model.parse_losses(losses)
                if is_backbone:
                    torch.autograd.backward(maps, make_gradients(maps, self.seed))
                else:
                    result['loss'] = to_arrays([loss])
                    (loss * CHECK_LOSS_SCALE).backward()
                result['gradients'] = to_arrays(sampled_gradients(self.model))
                self.model.zero_grad()
        self.model.train(case.mode == 'train')
        # What was compiled for the comparison, maybe at another size, must not make
        # the compiler choose code for any size afterwards.
        torch.compiler.reset()
        return result


def make_batch(
    case: Case, device: torch.device, seed: int
) -> tuple[Tensor, list[SegDataSample]]:
    """Random images, and labels of which some are to be ignored.

    Args:
        case: gives the size.
        device: where they are.
        seed: makes them the same everywhere.

    Returns:
        (B, 3, H, W) as after normalization, and B samples of mmsegmentation.
    """
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
    """Fixed gradients of feature maps, laid out in memory as the maps are."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.empty_like(x).copy_(torch.randn(x.shape, generator=generator))
        for x in maps
    ]


def make_optimizer(
    model: nn.Module, cfg: Config, dtype: str, device: torch.device
) -> OptimWrapper:
    """The optimizer of a config; with loss scaling for fp16."""
    settings = cfg.optim_wrapper.copy()
    if dtype == 'fp16' and device.type == 'cuda':
        # Starts low, so that no step of the measurement is skipped for an overflow.
        settings.update(
            type='AmpOptimWrapper',
            dtype='float16',
            loss_scale=dict(init_scale=float(CHECK_LOSS_SCALE)),
        )
    return build_optim_wrapper(model, settings)


def make_repeatable(model: nn.Module) -> None:
    """Switches off what makes a training step random or ill-conditioned.

    That is dropout, stochastic depth, and the statistics of batch norms: a channel
    of UPerNet's 1x1 pooling has a value for each image only, and dividing by the
    spread of so few turns rounding into noise.
    """
    kinds = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm, DropPath)
    for module in model.modules():
        # timm has a stochastic depth of its own.
        if isinstance(module, kinds) or type(module).__name__ == 'DropPath':
            module.eval()


def sampled_gradients(model: nn.Module) -> list[Tensor]:
    """Evenly spaced numbers of each parameter's gradient, in order of names."""
    samples = []
    for _, parameter in sorted(model.named_parameters()):
        # mmsegmentation's modules have parameters that nothing uses.
        if parameter.grad is not None:
            flat = parameter.grad.flatten()
            samples.append(flat[:: -(-flat.numel() // GRADIENT_SAMPLES)])
    return samples


def to_arrays(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """Copies in float32.

    As arrays they go from process to process through a pipe. Tensors would go through
    shared memory, of which containers often have little.
    """
    return [x.detach().float().cpu().numpy().copy() for x in tensors]


@contextlib.contextmanager
def full_precision():
    """On a GPU, convolutions in float32 proper instead of TF32."""
    with torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=False, allow_tf32=False
    ):
        yield
