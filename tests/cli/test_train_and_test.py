"""``tools/train.py`` and ``tools/test.py``, run on a few small scenes."""

from __future__ import annotations

import errno
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS
from PIL import Image
from torch import nn

from builders import ROOT, run_in_two, small_demo
from mmseg_twins.cli import common, test, train
from mmseg_twins.engine.latest import find_whole_checkpoint
from mmseg_twins.errors import SettingError

COMMANDS = {'train.py': train.main, 'test.py': test.main}
AUGMENTATION = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale=(64, 64), keep_ratio=True),
                dict(type='Resize', scale=(96, 96), keep_ratio=True),
            ],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ],
    ),
]


@pytest.fixture(scope='session')
def small_config(scenes: Path) -> str:
    """The text of a config with everything in it, only small."""
    cfg = small_demo(scenes)
    cfg.merge_from_dict(
        {
            'train_cfg': dict(max_iters=2, val_interval=2),
            'default_hooks.checkpoint.interval': 2,
            'tta_pipeline': AUGMENTATION,
            'log_level': 'INFO',
        }
    )
    return cfg.pretty_text


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_config: str) -> Path:
    """A folder with ``small.py``, in which the test then runs."""
    (tmp_path / 'small.py').write_text(small_config)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Maps this small are not worth sharing between threads, which costs seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def losses(work_dir: Path) -> dict[int, float]:
    """Maps iterations to their loss, as the runs in a work dir logged it."""
    rows = [
        json.loads(line)
        for file in sorted(work_dir.glob('*/vis_data/scalars.json'))
        for line in file.read_text().splitlines()
    ]
    return {row['step']: row['loss'] for row in rows if 'loss' in row}


def results(work_dir: Path) -> list[float]:
    """The mean IoUs of the tests in a work dir."""
    rows = [json.loads(path.read_text()) for path in work_dir.glob('*/*.json')]
    return [row['mIoU'] for row in rows]


@pytest.mark.usefixtures('one_thread')
def test_train_resume_and_test_run_to_their_end(project: Path, monkeypatch, capsys):
    # mmengine formats the config with every checkpoint, half the time of a run.
    monkeypatch.setattr(Config, 'pretty_text', 'left out')
    assert train.main(['small.py']) == 0
    work_dir = project / 'work_dirs/small'
    assert sorted(losses(work_dir)) == [1, 2]
    first = torch.load(work_dir / 'iter_2.pth', weights_only=True)

    options = ['--resume', '--cfg-options', 'train_cfg.max_iters=4']
    assert train.main(['small.py', *options]) == 0
    assert sorted(losses(work_dir)) == [1, 2, 3, 4]
    assert all(math.isfinite(loss) for loss in losses(work_dir).values())
    assert not (work_dir / 'earlier_1').exists()
    last = torch.load(work_dir / 'iter_4.pth', weights_only=True)
    name = 'backbone.patch_embeds.0.projection.weight'
    assert not torch.equal(last['state_dict'][name], first['state_dict'][name])

    arguments = ['small.py', str(work_dir / 'iter_4.pth'), '--work-dir']
    options = ['--out', 'predictions', '--show-dir', 'drawings']
    # A process has one visualizer of a name, and training made one already.
    options += ['--cfg-options', 'visualizer.name=drawing']
    assert test.main([*arguments, 'plain', *options]) == 0
    assert test.main([*arguments, 'tta', '--tta']) == 0
    assert len(results(project / 'plain')) == len(results(project / 'tta')) == 1
    assert 0 <= results(project / 'plain')[0] <= 100
    assert 'mIoU' in capsys.readouterr().out

    predictions = sorted((project / 'predictions').iterdir())
    assert len(predictions) == len(list((project / 'drawings').rglob('*.png'))) == 2
    labels = np.asarray(Image.open(predictions[0]))
    assert labels.shape == (64, 64)
    assert 1 <= labels.min() <= labels.max() <= 8


def test_augmented_evaluation_replaces_pipeline_and_model(project: Path):
    cfg = Config.fromfile('small.py')
    model = cfg.model
    common.use_test_time_augmentation(cfg)

    assert cfg.model.type == 'SegTTAModel'
    assert cfg.model.module == model
    assert cfg.test_dataloader.dataset.pipeline == cfg.tta_pipeline


def test_a_new_run_keeps_the_checkpoints_of_earlier_ones(project: Path):
    cfg = Config({'work_dir': 'runs', 'load_from': None})
    for content in ('first', 'second'):
        (project / 'runs').mkdir(exist_ok=True)
        (project / 'runs/iter_2.pth').write_text(content)
        (project / 'runs/last_checkpoint').write_text('runs/iter_2.pth')
        train.set_aside_checkpoints(cfg)

    assert (project / 'runs/earlier_1/iter_2.pth').read_text() == 'first'
    assert (project / 'runs/earlier_2/iter_2.pth').read_text() == 'second'
    assert sorted(path.name for path in (project / 'runs').iterdir()) == [
        'earlier_1',
        'earlier_2',
    ]


@pytest.mark.parametrize('variable', ['RANK', 'SLURM_PROCID'])
def test_only_the_first_process_moves_checkpoints(
    project: Path, monkeypatch, variable: str
):
    monkeypatch.setenv(variable, '1')
    (project / 'runs').mkdir()
    (project / 'runs/iter_2.pth').touch()

    assert train.set_aside_checkpoints(Config({'work_dir': 'runs'})) is None
    assert (project / 'runs/iter_2.pth').exists()


def test_the_learning_rate_scales_with_the_batch_size():
    cfg = Config({'auto_scale_lr': {'base_batch_size': 32}})
    train.scale_learning_rate(cfg)

    assert cfg.auto_scale_lr == {'enable': True, 'base_batch_size': 32}


def test_mixed_precision_replaces_the_optimizer_wrapper(monkeypatch):
    monkeypatch.setattr(train, 'get_device', lambda: 'cuda')
    cfg = Config({'optim_wrapper': {'optimizer': {'type': 'AdamW'}}})
    train.use_mixed_precision(cfg)

    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert cfg.optim_wrapper.loss_scale == 'dynamic'
    assert cfg.optim_wrapper.optimizer.type == 'AdamW'


def test_settings_of_parameters_are_logged_to_the_file_only(tmp_path: Path, capsys):
    logger = MMLogger.get_instance('parameters', log_file=str(tmp_path / 'run.log'))
    train.log_parameters_to_file(SimpleNamespace(logger=logger))
    settings = dict(
        optimizer=dict(type='SGD', lr=0.1, weight_decay=0.1),
        paramwise_cfg=dict(norm_decay_mult=0.0),
    )
    build_optim_wrapper(nn.LayerNorm(2), settings)
    logger.info('the training starts')

    shown, written = capsys.readouterr().out, (tmp_path / 'run.log').read_text()
    assert 'the training starts' in shown
    assert 'weight_decay=0.0' not in shown
    assert written.count('weight_decay=0.0') == 2


def test_a_batch_norm_with_a_single_value_names_the_batch_size():
    cfg = Config({'train_dataloader': {'batch_size': 1}})
    with (
        pytest.raises(SettingError, match=r'batch_size: 1 .* give 2 or more'),
        train.naming_batch_size(cfg),
    ):
        nn.BatchNorm2d(2)(torch.ones(1, 2, 1, 1))


TEST_URL = 'test.py small.py http://x/y.pth'
NO_DATA = '--cfg-options {}_dataloader.dataset.data_root=nowhere'
NO_MODULE = "dict(imports=['no_such_module'], allow_failed_imports=False)"
LAYER_DECAY = 'mmseg_twins.LayerDecayOptimWrapperConstructor'


@pytest.mark.parametrize(
    ('line', 'command', 'said'),
    [
        ('', 'train.py smal.py', "config: 'smal.py' does not exist; did you mean sm"),
        ('', 'train.py .', "config: '.' is a folder, not a file"),
        ('', 'train.py data.txt', "config: 'data.txt' does not exist"),
        ('', 'train.py qqqq', "config: 'qqqq' does not exist\n"),
        ('', 'train.py weights.pth', "config: 'weights.pth' is not a config file"),
        (
            'model = dict(',
            'train.py small.py',
            "config: 'small.py' cannot be read: '(' was never closed",
        ),
        ('', 'train.py derived.py', "config: 'derived.py' cannot be read: "),
        (
            f'custom_imports = {NO_MODULE}',
            'train.py small.py',
            "fails: No module named 'no_such_module'",
        ),
        (
            '',
            'train.py small.py --cfg-options train_cfg.max_iters.x=1',
            '--cfg-options: ',
        ),
        (
            '',
            'train.py small.py --cfg-options max_iters',
            "--cfg-options: 'max_iters' is not a KEY=VALUE pair",
        ),
        ('', 'test.py small.py no.pth', "checkpoint: 'no.pth' does not exist"),
        (
            '',
            'test.py small.py work_dirs/small/iter_9.pth',
            'did you mean work_dirs/small/iter_2.pth?',
        ),
        (
            '',
            'test.py small.py work_dirs/small',
            "'work_dirs/small' is a folder, not a file; did you mean "
            'work_dirs/small/iter_2.pth?',
        ),
        (
            '',
            f'train.py small.py {NO_DATA.format("train")}',
            "train_dataloader: the folder 'nowhere/images/training' does not exist",
        ),
        ('', f'{TEST_URL} {NO_DATA.format("test")}', 'test_dataloader: the folder'),
        (
            '',
            'train.py small.py --launcher pytorch',
            '--launcher pytorch: RANK and WORLD_SIZE not set in the environment',
        ),
        (
            '',
            'train.py small.py --cfg-options load_from=no.pth',
            "load_from: 'no.pth' does not exist",
        ),
        (
            '',
            'train.py small.py --resume --cfg-options load_from=weights.pth',
            "--resume: 'weights.pth' has no meta and no optimizer: it holds weights",
        ),
        (
            '',
            'train.py small.py --cfg-options load_from=work_dirs/small/iter_2.pth',
            'lies in the work_dir, whose checkpoints the new run would replace',
        ),
        (
            '',
            'train.py small.py --auto-scale-lr',
            'the config has no auto_scale_lr.base_batch_size',
        ),
        ('', 'train.py small.py --amp', '--amp: mmengine trains in mixed precision'),
        ('tta_model = None', f'{TEST_URL} --tta', '--tta: the config has no tta_model'),
        (
            "del default_hooks['visualization']",
            f'{TEST_URL} --show-dir drawings',
            'the config has no default_hooks.visualization',
        ),
        ('', f'{TEST_URL} --show', '--show: there is no display'),
        (
            '',
            f'{TEST_URL} --out predictions',
            "--out: 'predictions' is not empty",
        ),
    ],
)
def test_mistakes_get_one_sentence(
    line: str, command: str, said: str, project: Path, monkeypatch, capsys
):
    monkeypatch.setattr(train, 'get_device', lambda: 'cpu')
    monkeypatch.setattr(sys, 'platform', 'linux')
    for name in ('DISPLAY', 'WAYLAND_DISPLAY'):
        monkeypatch.delenv(name, raising=False)
    for folder in ('work_dirs/small', 'predictions'):
        (project / folder).mkdir(parents=True)
    (project / 'work_dirs/small/iter_2.pth').touch()
    (project / 'predictions/0.png').touch()
    (project / 'derived.py').write_text("_base_ = 'mmseg::_base_/nowhere.py'\n")
    torch.save({'state_dict': {'a': torch.zeros(1)}}, project / 'weights.pth')
    with (project / 'small.py').open('a') as file:
        file.write(line)
    before = sorted(project.rglob('*'))
    name, *arguments = command.split()

    with pytest.raises(SystemExit) as stop:
        COMMANDS[name](arguments)

    error = capsys.readouterr().err.splitlines(keepends=True)[-1]
    assert stop.value.code == 2
    assert error.startswith(f'{name}: error: ')
    assert said in error
    assert sorted(project.rglob('*')) == before


@pytest.mark.parametrize(
    ('option', 'said'),
    [
        ('model.backbone.arch=tiny', "arch='tiny' is unknown; give one of"),
        (f'optim_wrapper.constructor={LAYER_DECAY}', 'decay_rate'),
    ],
)
def test_settings_that_cannot_work_get_one_sentence(
    option: str, said: str, project: Path, capsys
):
    with pytest.raises(SystemExit) as stop:
        train.main(['small.py', '--cfg-options', option])

    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2
    assert error.startswith('train.py: error: ')
    assert said in error


def full_disk(*_) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.usefixtures('one_thread')
def test_a_full_disk_ends_a_training_with_what_is_kept(
    project: Path, monkeypatch, capsys
):
    write = Path.write_bytes

    def write_until_full(self: Path, content: bytes) -> int:
        if '.iter_2.pth' in self.name:
            write(self, content[:1000])
            full_disk()
        return write(self, content)

    monkeypatch.setattr(Path, 'write_bytes', write_until_full)
    interval = 'default_hooks.checkpoint.interval=1'
    with pytest.raises(SystemExit) as stop:
        train.main(['small.py', '--work-dir', 'run', '--cfg-options', interval])

    assert stop.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f'train.py: error: {project}/run/iter_2.pth could not be written (No space '
        f'left on device); nothing was changed; {project}/run/iter_1.pth is intact: '
        'free disk space and continue with --resume'
    )
    assert [path.name for path in project.glob('run/*iter_*')] == ['iter_1.pth']
    assert (project / 'run/last_checkpoint').read_text().endswith('iter_1.pth')


@pytest.mark.usefixtures('one_thread')
def test_a_full_disk_ends_a_test_with_the_files_name(
    project: Path, monkeypatch, capsys
):
    with DefaultScope.overwrite_default_scope('mmseg'):
        state = MODELS.build(Config.fromfile('small.py').model).state_dict()
    torch.save({'state_dict': state}, 'weights.pth')
    monkeypatch.setattr(Image.Image, 'save', full_disk)
    with pytest.raises(SystemExit) as stop:
        test.main(['small.py', 'weights.pth', '--out', 'predictions'])

    assert stop.value.code == 1
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith('test.py: error: predictions could not be written (No space ')
    )


@pytest.mark.parametrize('command', ['train.py small.py', TEST_URL])
@pytest.mark.parametrize('kind', ['file', 'beneath a file', 'system'])
def test_a_work_dir_that_cannot_be_written_to_is_named_before_the_run(
    command: str, kind: str, project: Path, capsys
):
    (project / 'taken').touch()
    folder = {'file': 'taken', 'beneath a file': 'taken/run', 'system': '/proc/run'}
    if kind == 'system' and not Path('/proc/self').is_dir():
        pytest.skip('no folder that the administrator cannot write to')
    name, *arguments = command.split()
    with pytest.raises(SystemExit) as stop:
        COMMANDS[name]([*arguments, '--work-dir', folder[kind]])

    assert stop.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"{name}: error: --work-dir: '{folder[kind]}' cannot be wr")
    assert error.endswith('give another folder')


@pytest.mark.slow
def test_a_disk_that_is_really_full_keeps_the_last_checkpoint(project: Path):
    tmpfs = ['mount', '-t', 'tmpfs', '-o', 'size=3m', 'none', 'disk']
    (project / 'disk').mkdir()
    may_mount = (
        shutil.which('unshare')
        and not subprocess.run(['unshare', '-rm', *tmpfs], check=False).returncode
    )
    if not may_mount:
        pytest.skip('no small file system can be made here')
    train_py = [sys.executable, str(ROOT / 'tools/train.py'), 'small.py']
    options = ['train_cfg.max_iters=9', 'default_hooks.checkpoint.interval=1']
    command = [*train_py, '--work-dir', 'disk/run', '--cfg-options', *options]
    script = (
        f'{shlex.join(tmpfs)} && {shlex.join(command)}; '
        'echo $? > status; cp -a disk/run kept; df --output=avail -B1 disk > room'
    )
    ended = subprocess.run(
        ['unshare', '-rm', 'sh', '-c', script],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )

    error = ended.stderr.splitlines()[-1]
    assert (project / 'status').read_text() == '1\n'
    assert 'iter_3.pth could not be written (No space left on device)' in error
    assert 'iter_2.pth is intact: free disk space and continue with --resume' in error
    assert sorted(path.name for path in (project / 'kept').glob('*iter_*')) == [
        'iter_1.pth',
        'iter_2.pth',
    ]
    assert find_whole_checkpoint(project / 'kept').endswith('iter_2.pth')
    assert int((project / 'room').read_text().split()[-1]) > 100_000  # no debris


@pytest.mark.slow
def test_two_processes_on_the_cpu_train_and_test(project: Path):
    run_in_two('train.py', 'small.py', folder=project)
    run_in_two('test.py', 'small.py', 'work_dirs/small/iter_2.pth', folder=project)

    work_dir = project / 'work_dirs/small'
    assert sorted(losses(work_dir)) == [1, 2]
    assert all(math.isfinite(loss) for loss in losses(work_dir).values())
    assert len(results(work_dir)) == 1
    logs = [path.read_text() for path in work_dir.rglob('*.log')]
    assert any('GPU number: 2' in log for log in logs)  # mmengine's word for processes


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        ('classes', 'of another shape: another number of classes'),
        ('variant', 'tensors are missing'),
        ('resnet', 'none of its tensors'),
    ],
)
@pytest.mark.parametrize('options', [[], ['--tta']], ids=['plain', 'tta'])
def test_no_scores_come_from_a_checkpoint_that_does_not_fit(
    change: str, sentence: str, options: list[str], project: Path, capsys
):
    cfg = Config.fromfile('small.py')
    with DefaultScope.overwrite_default_scope('mmseg'):
        state = MODELS.build(cfg.model).state_dict()
    if change == 'classes':
        for end in ('weight', 'bias'):
            name = f'decode_head.conv_seg.{end}'
            state[name] = state[name][:3]
    elif change == 'variant':
        state = {name: x for name, x in state.items() if 'layers.3' not in name}
    else:
        state = {'layer1.0.conv1.weight': torch.zeros(8, 8, 3, 3)}
    torch.save({'state_dict': state}, 'weights.pth')

    with pytest.raises(SystemExit) as exited:
        test.main(['small.py', 'weights.pth', *options])

    assert exited.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert 'weights.pth does not fit the config' in error
    assert sentence in error
