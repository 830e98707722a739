"""Two processes with half a batch each train as one does with the whole batch.

The processes are forked and talk through gloo, on the CPU. Configs are cut down, in
float64, and their batch norms are frozen: as PyTorch has it, each process would
normalize its own part of the batch.
"""

from __future__ import annotations

import copy
import datetime
from collections.abc import Callable
from pathlib import Path

import mmseg.models  # noqa: F401, registers mmsegmentation's parts
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing import start_processes

from builders import narrow_config

CONFIGS = [
    'twins_svt-s_uperhead_8x2_512x512_160k_ade20k',
    'twins_pcpvt-s_fpn_fpnhead_8x4_512x512_80k_ade20k',
]
IMAGES, STEPS = 4, 4
# Weights move by 1e-2 in all. The biases of keys get no gradient but rounding, and
# AdamW divides a gradient by its size.
TOLERANCE = 1e-9

pytestmark = [
    pytest.mark.filterwarnings('ignore:Default ``avg_non_ignore``'),
    pytest.mark.filterwarnings('ignore:os.fork'),
]
Wrap = Callable[[nn.Module], nn.Module]


def build(model: ConfigDict) -> nn.Module:
    """The same weights in every process, none of them at a special value."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = revert_sync_batchnorm(MODELS.build(copy.deepcopy(model))).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            module.eval()
    return model


def batch(step: int) -> tuple[Tensor, list[SegDataSample]]:
    """Images of noise; the first half has many more pixels to ignore."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(IMAGES, 3, 64, 64, generator=generator, dtype=torch.float64)
    labels = torch.randint(6, (IMAGES, 1, 64, 64), generator=generator)
    labels[: IMAGES // 2, :, ::2] = 255
    return images, [SegDataSample(gt_sem_seg=PixelData(data=each)) for each in labels]


def train(
    cfg: Config, wrap: Wrap, *, rank: int = 0, world_size: int = 1
) -> tuple[list[float], nn.Module]:
    """Takes some steps with a part of each batch; returns losses and the model."""
    model = wrap(build(cfg.model))
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    optimizer.initialize_count_status(model, 0, STEPS)
    losses = []
    for step in range(STEPS):
        images, samples = batch(step)
        found = model(images[rank::world_size], samples[rank::world_size], mode='loss')
        loss = sum(value for name, value in found.items() if 'loss' in name)
        optimizer.update_params(loss)
        losses.append(float(loss.detach()))
    return losses, model


def data_parallel(model: nn.Module) -> nn.Module:
    return MMDistributedDataParallel(model, find_unused_parameters=False)


def sharded(model: nn.Module) -> nn.Module:
    """Shards each block of the backbone, and all else as one unit."""
    mesh = init_device_mesh('cpu', (distributed.get_world_size(),))
    for blocks in model.backbone.layers:
        for block in blocks:
            fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def one_of_two(rank: int, cfg: Config, wrap: Wrap, folder: Path) -> None:
    """Saves losses, all weights, and how many of them this process holds."""
    distributed.init_process_group(
        'gloo',
        init_method=f'file://{folder}/meeting',
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    losses, model = train(cfg, wrap, rank=rank, world_size=2)
    if wrap is data_parallel:
        state, size = model.module.state_dict(), 0
    else:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state, _ = get_state_dict(model, (), options=options)
        size = sum(p.to_local().numel() for p in model.parameters())
    torch.save(dict(losses=losses, state_dict=state, size=size), folder / f'{rank}.pth')
    distributed.destroy_process_group()


def train_in_two(cfg: Config, wrap: Wrap, folder: Path) -> list[dict]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start_processes(one_of_two, (cfg, wrap, folder), nprocs=2, start_method='fork')
    torch.set_num_threads(threads)
    return [torch.load(folder / f'{rank}.pth', weights_only=True) for rank in range(2)]


@pytest.mark.parametrize(
    'wrap', [data_parallel, pytest.param(sharded, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize('name', CONFIGS)
def test_two_processes_have_the_losses_and_weights_of_one(
    name: str, wrap: Wrap, tmp_path: Path
):
    cfg = narrow_config(name)
    cfg.model.backbone.depths = [2, 2, 1, 1]
    # Four steps at the config's rate would not be seen.
    cfg.optim_wrapper.optimizer.lr *= 50
    start = build(cfg.model).state_dict()
    losses, model = train(cfg, lambda model: model)
    both = train_in_two(cfg, wrap, tmp_path)

    halves = list(zip(*(each['losses'] for each in both), strict=True))
    assert [sum(pair) / 2 for pair in halves] == pytest.approx(losses, rel=1e-10)
    assert all(first != second for first, second in halves)
    expected = model.state_dict()
    # A sharded state dict is gathered in the first process.
    for found in both if wrap is data_parallel else both[:1]:
        state = found['state_dict']
        assert state.keys() == expected.keys()
        for key, value in expected.items():
            assert (state[key] - value).abs().max() <= TOLERANCE, key
    key = 'backbone.patch_embeds.0.projection.weight'
    assert (expected[key] - start[key]).abs().max() > 1e-3
    if wrap is sharded:
        total = sum(p.numel() for p in model.parameters())
        assert both[0]['size'] + both[1]['size'] == total
        assert both[0]['size'] < 0.6 * total
