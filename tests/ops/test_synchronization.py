"""A training step never waits for an accelerator to hand over a number."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from builders import TINY
from mmseg_twins import ops

SIZE = (72, 100)
CLASSES = 3
# Operations whose result, or its shape, Python has to know, and such as make a tensor
# of Python's numbers, which an accelerator has to fetch.
WAITING = {
    '_local_scalar_dense',
    'bincount',
    'equal',
    'is_nonzero',
    'lift_fresh',
    'masked_select',
    'nonzero',
    'nonzero_static',
    'unique_consecutive',
    '_unique2',
}
INDEXING = {'index', 'index_put', 'index_put_', '_index_put_impl_'}


def fail(*_, **__):
    raise AssertionError('a tensor is copied to the CPU')


class WaitsForNothing(TorchDispatchMode):
    """Fails at the first operation that would wait for an accelerator."""

    def __enter__(self):
        self.patches = pytest.MonkeyPatch()
        for name in ('cpu', 'numpy', 'tolist'):  # no operations on a CPU
            self.patches.setattr(Tensor, name, fail)
        return super().__enter__()

    def __exit__(self, *exception):
        self.patches.undo()
        return super().__exit__(*exception)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in WAITING, name
        if name in INDEXING:
            indices = [x for x in tree_leaves(args[1]) if isinstance(x, Tensor)]
            masks = (torch.bool, torch.uint8)
            assert not any(x.dtype in masks for x in indices), f'{name} by a mask'
        return func(*args, **(kwargs or {}))


def segmentor(family: str, class_weight: list[float] | None) -> nn.Module:
    loss = dict(type='CrossEntropyLoss', class_weight=class_weight)
    head = dict(
        num_classes=CLASSES,
        channels=4,
        norm_cfg=dict(type='BN'),
        align_corners=False,
        loss_decode=loss,
    )
    widths = TINY['embed_dims']
    decode = dict(in_channels=widths, in_index=(0, 1, 2, 3), pool_scales=(1, 2))
    cfg = dict(
        type='mmseg.EncoderDecoder',
        backbone=dict(type=f'mmseg_twins.{family}', drop_path_rate=0.3, **TINY),
        decode_head=dict(type='mmseg_twins.UPerHead', **decode, **head),
        auxiliary_head=dict(
            type='mmseg_twins.FCNHead', in_channels=24, in_index=2, **head
        ),
    )
    if family == 'SVT':
        cfg['backbone']['window_sizes'] = (7, 7, 7, 7)
    return MODELS.build(ConfigDict(cfg)).train()


@pytest.mark.filterwarnings('ignore:Default ``avg_non_ignore``')
@pytest.mark.parametrize('class_weight', [None, [1.0, 2.0, 0.5]])
@pytest.mark.parametrize('family', ['PCPVT', 'SVT'])
def test_a_training_step_waits_for_nothing(family, class_weight):
    model = segmentor(family, class_weight)
    images = torch.randn(2, 3, *SIZE)
    labels = torch.randint(CLASSES, (2, 1, *SIZE))
    labels[:, :, :9] = 255
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]

    def step():
        losses = model.loss(images, samples)
        sum(loss for name, loss in losses.items() if 'loss' in name).backward()

    with ops.use('portable'):
        step()  # makes the constants that are kept
        with WaitsForNothing():
            step()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    'wait',
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.masked_fill_(x > 0, 0)[(x > 0).nonzero()],
        lambda x: bool((x > 0).any()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.new_tensor([1.0]),
    ],
)
def test_operations_that_wait_are_found(wait):
    with WaitsForNothing(), pytest.raises(AssertionError):
        wait(torch.randn(5))
