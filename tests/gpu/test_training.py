"""Training on a GPU: it waits for nothing, repeats itself, resumes, and distributes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from benchmarking.models import PACKAGE
from mmengine.runner import Runner

from builders import ROOT, run_distributed

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings('ignore')]
VARIANTS = ('pcpvt-s', 'svt-s')
UPERNET = dict(
    model__neck=None,
    model__decode_head=dict(
        _delete_=True,
        type='mmseg_twins.UPerHead',
        in_channels=[8, 16, 24, 32],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=8,
        num_classes=8,
        norm_cfg=dict(type='BN'),
        align_corners=False,
    ),
)


@contextmanager
def waiting_is_an_error(device: torch.device) -> Iterator[None]:
    if device.type != 'cuda':  # tests/ops/test_synchronization.py judges the CPU
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize('dtype', ['fp32', 'bf16'])
@pytest.mark.parametrize('head', ['uperhead', 'fpn'])
@pytest.mark.parametrize('variant', VARIANTS)
def test_a_training_step_waits_for_nothing(device, start, case, variant, head, dtype):
    session = start(PACKAGE, case(variant, head, 'train', dtype))

    def step() -> None:
        with session.autocast():
            loss = session.loss(session.images, session.samples)
        session.optimizer.update_params(loss)

    step()  # makes what is kept: constants, orders of tokens, the optimizer's state
    before = [p.detach().clone() for p in session.model.parameters()]
    with waiting_is_an_error(device):
        step()
    after = list(session.model.parameters())
    assert sum(not torch.equal(*pair) for pair in zip(before, after, strict=True)) > 9


def test_waiting_is_found(device):
    if device.type != 'cuda':
        pytest.skip('a CPU waits for itself')
    with waiting_is_an_error(device), pytest.raises(RuntimeError, match='synchroniz'):
        torch.ones(3, device=device).sum().item()


@pytest.mark.parametrize('head', ['uperhead', 'fpn'])
def test_float16_with_loss_scaling_lowers_the_loss(device, start, case, head):
    session = start(PACKAGE, case('svt-s', head, 'train', 'fp16'))
    losses = []
    for _ in range(8):
        with session.autocast():
            loss = session.loss(session.images, session.samples)
        session.optimizer.update_params(loss)
        losses.append(float(loss))
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]


def state(runner: Runner) -> dict[str, torch.Tensor]:
    return {name: x.cpu().clone() for name, x in runner.model.state_dict().items()}


@pytest.mark.parametrize('model', ['fpn', 'uperhead'])
def test_a_deterministic_training_is_resumed_bit_for_bit(device, train, model):
    settings = dict(randomness__deterministic=True)
    if model == 'uperhead':
        settings |= UPERNET
    whole = train('whole', **settings)
    assert next(whole.model.parameters()).device.type == device.type
    train(**settings, train_cfg__max_iters=4)
    first, second = state(whole), state(train(**settings, resume=True))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_deterministic_training_is_validated(train):
    runner = train(
        randomness__deterministic=True,
        train_cfg__max_iters=2,
        train_cfg__val_interval=2,
    )
    assert 'val/mIoU' in runner.message_hub.log_scalars


def losses_of(work_dir: Path) -> list[float]:
    (scalars,) = work_dir.rglob('scalars.json')
    lines = map(json.loads, scalars.read_text().splitlines())
    return [line['loss'] for line in lines if 'loss' in line]


def test_one_process_of_a_distributed_training_is_as_one_alone(
    device, scenes: Path, tmp_path: Path
):
    """Through NCCL on a GPU, through Gloo in a rehearsal."""
    loader = dict(
        batch_size=2, num_workers=0, persistent_workers=False,
        dataset=dict(data_root=str(scenes.absolute())),
    )  # fmt: skip
    lines = [
        f'_base_ = {str(ROOT / "configs/demo/twins_svt_fpn_streets.py")!r}',
        f'train_dataloader = val_dataloader = test_dataloader = {loader!r}',
        'train_cfg = dict(max_iters=3, val_interval=9)',
        'default_hooks = dict(checkpoint=dict(interval=3), logger=dict(interval=1))',
    ]
    (tmp_path / 'config.py').write_text('\n'.join(lines))
    on_gpu = device.type == 'cuda'
    for name, launcher in (('alone', 'none'), ('together', 'pytorch')):
        run_distributed(
            'train.py', 'config.py', '--work-dir', name, '--launcher', launcher,
            folder=tmp_path, processes=1, on_gpu=on_gpu,
        )  # fmt: skip
        saved = torch.load(tmp_path / name / 'iter_3.pth', weights_only=True)
        assert all(bool(x.isfinite().all()) for x in saved['state_dict'].values())
    alone, together = (losses_of(tmp_path / name) for name in ('alone', 'together'))
    assert together == pytest.approx(alone, rel=2e-2)
    log = next((tmp_path / 'together').rglob('*.log')).read_text()
    assert 'Distributed training: True' in log
