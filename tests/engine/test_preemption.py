"""A signal ends a run with a checkpoint, from which it goes on bit for bit."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmseg.registry import TRANSFORMS

from builders import ROOT
from mmseg_twins.engine import ExactResume, preemption
from mmseg_twins.engine.preemption import STATUS, Preempted, Preemption
from mmseg_twins.errors import SettingError
from mmseg_twins.registry import HOOKS

SIGNAL = signal.SIGUSR1


@HOOKS.register_module(force=True)
class SendSignal(Hook):
    """Sends a signal to this process at a moment of a training."""

    def __init__(self, moment: str, at: int, number: int = SIGNAL) -> None:
        self.moment, self.at, self.number = moment, at, number

    def _send(self, moment: str, runner) -> None:
        if self.moment == moment and runner.iter == self.at:
            os.kill(os.getpid(), self.number)

    def before_train(self, runner) -> None:
        self._send('start', runner)

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self._send('step', runner)

    def before_val(self, runner) -> None:
        self._send('before_validation', runner)

    def before_val_iter(self, runner, batch_idx, data_batch=None) -> None:
        self._send('validation', runner)


def sending(moment: str, at: int) -> dict:
    return dict(
        custom_hooks=[dict(type='mmseg_twins.SendSignal', moment=moment, at=at)]
    )


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob('*.pth'))


def saved(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def assert_equal(first: dict, second: dict, *keys: str) -> None:
    for key in keys:
        assert first[key].keys() == second[key].keys()
        for name, value in first[key].items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, second[key][name]), name


@TRANSFORMS.register_module()
class Stall:
    """Sends a signal to a training once, and notes if that lets it wait."""

    def __init__(self, after: str, pid: int) -> None:
        self.after, self.pid = Path(after), pid

    def __call__(self, results: dict) -> dict:
        if self.after.exists():
            self.after.unlink()
            os.kill(self.pid, SIGNAL)
            time.sleep(300)
            self.after.with_name('waited').touch()
        return results


@HOOKS.register_module(force=True)
class LetStall(Hook):
    """Lets samples stall after a number of iterations."""

    priority = 'VERY_LOW'

    def __init__(self, path: str, at: int) -> None:
        self.path, self.at = Path(path), at

    def after_train_iter(
        self, runner, batch_idx, data_batch=None, outputs=None
    ) -> None:
        if runner.iter + 1 == self.at:
            self.path.touch()


def stalling(demo: Config, folder: Path, loader: str, at: int, workers: int) -> dict:
    """Settings with which the first batch after an iteration never comes."""
    marker = str(folder / 'stall')
    stall = dict(type='Stall', after=marker, pid=os.getpid())
    pipeline = [stall, *demo[loader].dataset.pipeline]
    return {
        f'{loader}__dataset__pipeline': pipeline,
        f'{loader}__num_workers': workers,
        'custom_hooks': [
            dict(type='mmseg_twins.LetStall', path=marker, at=at),
            dict(type='EMAHook', momentum=0.25),
        ],
    }


EVERY_THREE = dict(
    default_hooks__checkpoint__interval=3,
    train_cfg__max_iters=6,
    train_cfg__val_interval=3,
)


def test_a_signal_in_a_step_saves_that_iteration(train, tmp_path: Path):
    with pytest.raises(Preempted) as ended:
        train(**EVERY_THREE, **sending('step', 1))
    assert ended.value.code == STATUS == 75
    assert names(tmp_path / 'run') == ['iter_2.pth']
    assert saved(tmp_path / 'run/iter_2.pth')['meta']['iter'] == 2

    train(**EVERY_THREE, resume=True)
    train('whole', **EVERY_THREE)
    both = [saved(tmp_path / run / 'iter_6.pth') for run in ('run', 'whole')]
    assert_equal(*both, 'state_dict')


def test_a_validation_is_left_and_repeated(train, tmp_path: Path):
    averaged = dict(type='EMAHook', momentum=0.25)
    hooks = dict(sending('validation', 3))
    hooks['custom_hooks'] = [*hooks['custom_hooks'], averaged]
    with pytest.raises(Preempted):
        train(**EVERY_THREE, **hooks)
    assert names(tmp_path / 'run') == ['iter_3.pth']
    assert not (tmp_path / 'run/last_validation').exists()

    train(**EVERY_THREE, resume=True, custom_hooks=[averaged])
    train('whole', **EVERY_THREE, custom_hooks=[averaged])
    both = [saved(tmp_path / run / 'iter_6.pth') for run in ('run', 'whole')]
    assert_equal(*both, 'state_dict', 'ema_state_dict')
    assert (tmp_path / 'run/last_validation').read_text().strip() == '6'


def test_weights_saved_in_a_validation_are_the_models_not_the_averages(
    train, tmp_path: Path
):
    averaged = dict(type='EMAHook', momentum=0.25)
    settings = {**EVERY_THREE, 'train_cfg__val_interval': 2}
    hooks = [*sending('validation', 2)['custom_hooks'], averaged]
    with pytest.raises(Preempted):
        train(**settings, custom_hooks=hooks)
    train(
        'whole',
        **{**settings, 'train_cfg__max_iters': 2},
        custom_hooks=[averaged],
        default_hooks__checkpoint=dict(interval=2),
    )
    both = [saved(tmp_path / run / 'iter_2.pth') for run in ('run', 'whole')]
    assert_equal(*both, 'state_dict', 'ema_state_dict')


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('loader', ['val_dataloader', 'train_dataloader'])
def test_a_first_batch_is_not_waited_for(
    loader: str, workers: int, train, demo: Config, tmp_path: Path
):
    settings, name = {
        'val_dataloader': (EVERY_THREE, 'iter_3.pth'),
        'train_dataloader': (EPOCHS, 'epoch_1.pth'),
    }[loader]
    unsaved = {**settings, 'default_hooks__checkpoint__interval': 9}
    with pytest.raises(Preempted):
        train(**unsaved, **stalling(demo, tmp_path, loader, 3, workers))
    assert names(tmp_path / 'run') == [name]
    assert not multiprocessing.active_children()
    assert not (tmp_path / 'waited').exists()

    if not workers:
        averaged = dict(custom_hooks=[dict(type='EMAHook', momentum=0.25)])
        train('whole', **settings, **averaged)
        both = [saved(tmp_path / run / name) for run in ('run', 'whole')]
        assert_equal(*both, 'state_dict', 'ema_state_dict')


def test_a_signal_before_a_validation_is_not_forgotten(train, tmp_path: Path):
    settings = {**EVERY_THREE, 'default_hooks__checkpoint__interval': 9}
    with pytest.raises(Preempted):
        train(**settings, **sending('before_validation', 3))
    assert names(tmp_path / 'run') == ['iter_3.pth']
    log = ''.join(file.read_text() for file in (tmp_path / 'run').rglob('*.log'))
    assert 'Iter(val)' not in log


class Busy(logging.Handler):
    """Gets a signal while it has a lock that a second line would wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.busy = threading.Lock()
        self.is_sent = self.waited = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self.busy.acquire(timeout=1):
            self.waited = True
            return
        try:
            if not self.is_sent:
                self.is_sent = True
                os.kill(os.getpid(), SIGNAL)
                time.sleep(0)
        finally:
            self.busy.release()


def test_nothing_is_logged_within_a_line_of_a_log(train, monkeypatch):
    busy = Busy()

    def log(self, runner) -> None:
        runner.logger.addHandler(busy)
        runner.logger.error('the training begins')

    monkeypatch.setattr(SendSignal, 'before_train', log)
    with pytest.raises(Preempted):
        train(**EVERY_THREE, **sending('start', 0))
    assert busy.is_sent
    assert not busy.waited


def test_before_the_first_iteration_nothing_is_saved(train, tmp_path: Path):
    with pytest.raises(Preempted):
        train(**EVERY_THREE, **sending('start', 0))
    assert not names(tmp_path / 'run')


def test_a_resumed_run_that_has_not_begun_keeps_its_checkpoint(train, tmp_path: Path):
    train(**{**EVERY_THREE, 'train_cfg__max_iters': 3})
    with pytest.raises(Preempted):
        train(**EVERY_THREE, **sending('start', 3), resume=True)
    assert names(tmp_path / 'run') == ['iter_3.pth']


def test_a_checkpoint_that_is_due_is_saved_once(train, tmp_path: Path, monkeypatch):
    steps = []
    save = preemption.CheckpointHook._save_checkpoint_with_step
    monkeypatch.setattr(
        preemption.CheckpointHook,
        '_save_checkpoint_with_step',
        lambda self, runner, step, meta: (
            steps.append(step),
            save(self, runner, step, meta),
        ),
    )
    with pytest.raises(Preempted):
        train(**EVERY_THREE, **sending('step', 2))
    assert steps == [3]


EPOCHS = dict(
    train_cfg=dict(
        _delete_=True, type='EpochBasedTrainLoop', max_epochs=3, val_interval=9
    ),
    train_dataloader__sampler=dict(type='DefaultSampler', shuffle=True),
    param_scheduler=[dict(type='StepLR', step_size=1, gamma=0.1, by_epoch=True)],
    default_hooks__checkpoint=dict(by_epoch=True, interval=1),
)


@pytest.mark.parametrize('at', [1, 2, 3])
def test_training_by_epochs_goes_on_within_the_epoch(train, tmp_path: Path, at: int):
    with pytest.raises(Preempted):
        train(**EPOCHS, **sending('step', at))
    train(**EPOCHS, resume=True)
    train('whole', **EPOCHS)
    both = [saved(tmp_path / run / 'epoch_3.pth') for run in ('run', 'whole')]
    assert_equal(*both, 'state_dict')
    assert both[0]['param_schedulers'] == both[1]['param_schedulers']


def test_accumulated_gradients_are_used_before_the_end(train, tmp_path: Path):
    accumulated = {**EVERY_THREE, 'optim_wrapper__accumulative_counts': 2}
    accumulated['train_cfg__val_interval'] = 9
    accumulated['default_hooks__checkpoint__interval'] = 6
    with pytest.raises(Preempted):
        train(**accumulated, **sending('step', 2))
    assert names(tmp_path / 'run') == ['iter_4.pth']

    train(**accumulated, resume=True)
    train('whole', **accumulated)
    both = [saved(tmp_path / run / 'iter_6.pth') for run in ('run', 'whole')]
    assert_equal(*both, 'state_dict')


def test_a_damaged_checkpoint_of_an_epochs_middle_is_passed_over(train, tmp_path: Path):
    with pytest.raises(Preempted):
        train(**EPOCHS, **sending('step', 4))
    damaged = tmp_path / 'run/iter_5.pth'
    damaged.write_bytes(damaged.read_bytes()[:1000])
    runner = train(**EPOCHS, resume=True)
    assert Path(runner._load_from).name == 'epoch_1.pth'


def test_loaders_that_are_used_later_start_usual_processes(train):
    workers = dict(num_workers=1, persistent_workers=True)
    runner = train(
        **EVERY_THREE,
        **{f'val_dataloader__{key}': value for key, value in workers.items()},
    )
    iterator = iter(runner.val_dataloader)
    next(iterator)
    (worker,) = iterator._workers
    worker.terminate()  # as Python does at its exit, before it waits
    worker.join(20)
    assert not worker.is_alive()


def test_a_loader_is_as_before_after_several_epochs(train, monkeypatch):
    seen = []
    make = ExactResume._make_loader
    monkeypatch.setattr(
        ExactResume,
        '_make_loader',
        lambda *args: seen.append(make(*args)) or seen[-1],
    )
    train(**EPOCHS)
    (loader,) = seen
    assert getattr(loader.worker_init_fn, 'func', None) is not preemption._ignore


def test_handlers_are_put_back(train):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, SIGNAL)]
    with pytest.raises(Preempted):
        train(**EVERY_THREE, **sending('step', 1))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, SIGNAL)] == before


def test_a_run_without_the_checkpoint_hook_says_what_is_missing(train):
    with pytest.raises(SettingError, match=r'mmseg_twins\.CheckpointHook'):
        train(default_hooks__checkpoint=None)


@pytest.mark.parametrize('name', ['SIGNOTHING', 'SIGKILL', 9, 'SIG_IGN'])
def test_unknown_signals_are_named(name):
    with pytest.raises(SettingError, match=f'signals has {name!r}'):
        Preemption(signals=['SIGTERM', name])


def requeue(command: str) -> dict:
    return dict(default_hooks__preemption=dict(requeue=command))


def test_the_run_is_submitted_again_once_its_checkpoint_is_there(
    train, tmp_path: Path, monkeypatch
):
    script = tmp_path / 'scontrol'
    script.write_text(f'#!/bin/sh\n(echo "$@"; ls {tmp_path}/run) > {tmp_path}/called')
    script.chmod(0o755)
    monkeypatch.setenv('SLURM_JOB_ID', '17')
    with pytest.raises(Preempted):
        train(
            **EVERY_THREE,
            **sending('step', 1),
            **requeue(f'{script} requeue $SLURM_JOB_ID'),
        )
    job, *files = (tmp_path / 'called').read_text().splitlines()
    assert job == 'requeue 17'
    assert {'iter_2.pth', 'last_checkpoint'} <= set(files)


def test_a_requeue_that_fails_leaves_checkpoint_and_status(train, tmp_path, capfd):
    with pytest.raises(Preempted) as ended:
        train(**EVERY_THREE, **sending('step', 1), **requeue('echo no; exit 3'))
    assert ended.value.code == STATUS
    assert names(tmp_path / 'run') == ['iter_2.pth']
    log = ''.join(file.read_text() for file in (tmp_path / 'run').rglob('*.log'))
    assert "requeue='echo no; exit 3' failed with status 3 (no)" in log


CONFIG = """
_base_ = {base!r}
data_root = {data!r}
workers = dict(num_workers={workers}, persistent_workers={workers} > 0)
widths = [8, 16, 24, 32]
model = dict(
    backbone=dict(embed_dims=widths),
    neck=dict(in_channels=widths, out_channels=8),
    decode_head=dict(in_channels=[8] * 4, channels=8),
)
train_dataloader = dict(batch_size=2, dataset=dict(data_root=data_root), **workers)
val_dataloader = dict(dataset=dict(data_root=data_root), **workers)
test_dataloader = val_dataloader
train_cfg = dict(max_iters=100000, val_interval=100000)
default_hooks = dict(checkpoint=dict(interval=100000), logger=dict(interval=1))
"""


def write_config(folder: Path, scenes: Path, workers: int = 0) -> None:
    (folder / 'config.py').write_text(
        CONFIG.format(
            base=str(ROOT / 'configs/demo/twins_svt_fpn_streets.py'),
            data=str(scenes.absolute()),
            workers=workers,
        )
    )


def start_rank(
    rank: int, folder: Path, scenes: Path, *arguments: str, of: int = 2
) -> subprocess.Popen:
    """Start one process of a training that saves every second iteration."""
    write_config(folder, scenes)
    options = arguments or ('--cfg-options', 'default_hooks.checkpoint.interval=2')
    return subprocess.Popen(
        [sys.executable, str(ROOT / 'tools/train.py'), 'config.py', '--work-dir', 'run']
        + ['--launcher', 'pytorch', *options],
        cwd=folder,
        env={
            **os.environ,
            **dict(OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT)),
            **dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(of)),
            **dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(29700 + os.getpid() % 200)),
        },
        stdout=(folder / f'out_{rank}.txt').open('w'),
        stderr=subprocess.STDOUT,
    )


def start(folder: Path, scenes: Path, *, workers: int = 0, processes: int = 0):
    """Start a training that does not end by itself, and wait for its first steps."""
    write_config(folder, scenes, workers)
    torchrun = [
        *('-m', 'torch.distributed.run', '--standalone'),
        *('--nproc-per-node', str(processes)),
    ]
    command = [sys.executable, *(torchrun if processes else [])]
    process = subprocess.Popen(
        [*command, str(ROOT / 'tools/train.py'), 'config.py', '--work-dir', 'run'],
        cwd=folder,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)},
        stdout=(folder / 'out.txt').open('w'),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    wait_for(
        lambda: 'Iter(train) [     3/' in (folder / 'out.txt').read_text(), process
    )
    return process


def wait_for(happened, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGINT'])
def test_a_whole_process_group_ends_without_a_traceback(
    name: str, scenes: Path, tmp_path: Path
):
    process = start(tmp_path, scenes, workers=2)
    os.killpg(process.pid, signal.Signals[name])
    assert process.wait(60) == STATUS
    out = (tmp_path / 'out.txt').read_text()
    assert f'{name}: the run ends after iteration' in out
    assert 'Traceback' not in out
    assert len(names(tmp_path / 'run')) == 1


def test_a_second_signal_ends_at_once(tmp_path: Path):
    program = """
        import os, signal, time
        from mmseg_twins.engine import preemption
        preemption.GRACE = 0.2
        hook = preemption.Preemption()
        hook._pid = os.getpid()
        hook._originals = {signal.SIGTERM: signal.SIG_DFL}
        signal.signal(signal.SIGTERM, hook._receive)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        print('both are one', flush=True)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)
        print('still here', flush=True)
    """
    done = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(program)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.stdout == 'both are one\n', done.stderr
    assert done.returncode == -signal.SIGTERM


def children(pid: int) -> list[int]:
    found = subprocess.run(
        ['pgrep', '-P', str(pid)], capture_output=True, text=True
    ).stdout
    return [int(each) for each in found.split()]


@pytest.mark.slow
@pytest.mark.parametrize('receiver', ['one', 'all', 'torchrun'])
def test_processes_end_at_the_same_iteration(
    receiver: str, scenes: Path, tmp_path: Path
):
    process = start(tmp_path, scenes, workers=1, processes=2)
    ranks = children(process.pid)
    receivers = dict(one=ranks[1:], all=ranks, torchrun=[process.pid])[receiver]
    number = signal.SIGTERM if receiver == 'torchrun' else SIGNAL
    for pid in receivers:
        os.kill(pid, number)
    assert process.wait(60) != 0
    out = (tmp_path / 'out.txt').read_text()
    assert len(names(tmp_path / 'run')) == 1
    ended = 'a signal elsewhere' if receiver == 'one' else number.name
    assert f'{ended}: the run ends after iteration' in out
    if receiver != 'torchrun':  # which has a traceback of its own
        assert f'exitcode  : {STATUS}' in out
        assert 'train.py", line' not in out


@pytest.mark.slow
def test_a_process_whose_peer_was_killed_says_so_and_the_run_goes_on(
    scenes: Path, tmp_path: Path
):
    first, second = (start_rank(rank, tmp_path, scenes) for rank in range(2))
    wait_for(lambda: names(tmp_path / 'run'), first)
    second.kill()
    assert first.wait(60) == 1
    error = (tmp_path / 'out_0.txt').read_text().splitlines()[-1]
    assert 'another process of this run has ended or does not answer' in error
    assert 'is intact: continue with --resume' in error

    last = {'train_cfg.max_iters': int((names(tmp_path / 'run')[-1])[5:-4]) + 2}
    options = [f'{key}={value}' for key, value in last.items()]
    one = start_rank(0, tmp_path, scenes, '--resume', '--cfg-options', *options, of=1)
    assert one.wait(60) == 0


@pytest.mark.slow
def test_processes_that_resume_from_different_folders_both_say_so(
    scenes: Path, tmp_path: Path
):
    folders = [tmp_path / name for name in 'ab']
    for folder in folders:
        folder.mkdir()
    options = ('train_cfg.max_iters=2', 'default_hooks.checkpoint.interval=2')
    one = start_rank(0, folders[0], scenes, '--cfg-options', *options, of=1)
    assert one.wait(600) == 0
    ranks = [start_rank(k, folders[k], scenes, '--resume') for k in range(2)]
    assert [rank.wait(600) for rank in ranks] == [2, 2]
    for k in range(2):
        error = (folders[k] / f'out_{k}.txt').read_text().splitlines()[-1]
        assert 'process 0 finds' in error
        assert error.endswith('must be the same folder on all machines')
