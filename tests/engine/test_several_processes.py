"""Two processes with half a batch each train as one does with the whole batch.

The processes are forked and talk through gloo, on the CPU. Recipes are cut down, in
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

ROOT = Path(__file__).parents[2]
RECIPES = {
    'upernet': 'twins_svt-s_uperhead_8x2_512x512_160k_ade20k',
    'fpn': 'twins_pcpvt-s_fpn_fpnhead_8x4_512x512_80k_ade20k',
}
WIDTHS = [8, 16, 24, 32]
IMAGES, CLASSES, STEPS = 4, 6, 4
# Weights move by 1e-2 in all. The biases of keys get no gradient but rounding, and
# AdamW divides a gradient by its size.
TOLERANCE = 1e-9

pytestmark = [
    pytest.mark.filterwarnings('ignore:Default ``avg_non_ignore``'),
    pytest.mark.filterwarnings('ignore:os.fork'),
]
Wrap = Callable[[nn.Module], nn.Module]


def small(name: str) -> Config:
    """A recipe, narrow and shallow, with nothing random in it."""
    cfg = Config.fromfile(ROOT / f'configs/{RECIPES[name]}.py')
    model = cfg.model
    model.backbone.update(
        embed_dims=WIDTHS,
        num_heads=[1, 2, 3, 4],
        depths=[2, 2, 1, 1],
        drop_path_rate=0.0,
        init_cfg=None,
    )
    heads = [model.decode_head]
    if name == 'fpn':
        model.neck.update(in_channels=WIDTHS, out_channels=8)
        model.decode_head.in_channels = [8] * 4
    else:
        model.decode_head.in_channels = WIDTHS
        model.auxiliary_head.in_channels = WIDTHS[2]
        heads.append(model.auxiliary_head)
    for head in heads:
        head.update(channels=8, num_classes=CLASSES, dropout_ratio=0.0)
    # Four steps at the recipe's rate would not be seen.
    cfg.optim_wrapper.optimizer.lr *= 50
    return cfg


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
    labels = torch.randint(CLASSES, (IMAGES, 1, 64, 64), generator=generator)
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
    # A head's `loss` is called, not its `forward`, which is where a unit of its own
    # would gather its weights.
    return fully_shard(model, mesh=mesh)


def one_of_two(rank: int, cfg: Config, wrap: Wrap, folder: Path) -> None:
    """What each process does: trains, and writes what it found."""
    torch.set_num_threads(1)  # threads of a forked process are not there any more
    distributed.init_process_group(
        'gloo',
        init_method=f'file://{folder}/meeting',
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    losses, model = train(cfg, wrap, rank=rank, world_size=2)
    if isinstance(model, MMDistributedDataParallel):
        state = model.module.state_dict()
        parts = None
    else:
        parts = {name: p.to_local().numel() for name, p in model.named_parameters()}
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state, _ = get_state_dict(model, (), options=options)
    saved = dict(losses=losses, state_dict=state, parts=parts)
    torch.save(saved, folder / f'{rank}.pth')
    distributed.destroy_process_group()


def train_in_two(cfg: Config, wrap: Wrap, folder: Path) -> list[dict]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start_processes(one_of_two, (cfg, wrap, folder), nprocs=2, start_method='fork')
    torch.set_num_threads(threads)
    return [torch.load(folder / f'{rank}.pth', weights_only=True) for rank in range(2)]


def assert_trained_alike(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        difference = (found[name] - value).abs().max()
        assert difference <= TOLERANCE, (name, difference)


@pytest.mark.parametrize('name', RECIPES)
def test_two_processes_have_the_losses_and_weights_of_one(name: str, tmp_path: Path):
    cfg = small(name)
    start = {k: v.clone() for k, v in build(cfg.model).state_dict().items()}
    losses, model = train(cfg, lambda model: model)
    first, second = train_in_two(cfg, data_parallel, tmp_path)

    assert first['losses'] != second['losses']
    halves = zip(first['losses'], second['losses'], strict=True)
    assert [sum(pair) / 2 for pair in halves] == pytest.approx(losses, rel=1e-10)
    expected = model.state_dict()
    assert_trained_alike(first['state_dict'], expected)
    assert_trained_alike(second['state_dict'], expected)
    name = 'backbone.patch_embeds.0.projection.weight'
    assert (expected[name] - start[name]).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize('name', RECIPES)
def test_backbones_and_heads_can_be_sharded(name: str, tmp_path: Path):
    cfg = small(name)
    losses, model = train(cfg, lambda model: model)
    first, second = train_in_two(cfg, sharded, tmp_path)

    halves = zip(first['losses'], second['losses'], strict=True)
    assert [sum(pair) / 2 for pair in halves] == pytest.approx(losses, rel=1e-10)
    # A state dict that was gathered on one process loads on one.
    alone = build(cfg.model)
    alone.load_state_dict(first['state_dict'])
    assert_trained_alike(alone.state_dict(), model.state_dict())
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert {
        name: first['parts'][name] + second['parts'][name] for name in sizes
    } == sizes
    assert sum(first['parts'].values()) < 0.6 * sum(sizes.values())
