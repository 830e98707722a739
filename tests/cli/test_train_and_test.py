"""``tools/train.py`` and ``tools/test.py``, run on three small random images."""

from __future__ import annotations

import argparse
import json
import math
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from builders import run_in_two
from mmseg_twins.cli import common as cli
from mmseg_twins.cli import train

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / 'configs/twins_svt-s_fpn_fpnhead_8x4_512x512_80k_ade20k.py'

# A recipe with everything in it, only small.
SMALL_CONFIG = f"""
_base_ = {str(RECIPE)!r}
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(
        embed_dims=[8, 16, 24, 32],
        num_heads=[1, 2, 3, 4],
        depths=[2, 1, 1, 1],
        init_cfg=None,
    ),
    neck=dict(in_channels=[8, 16, 24, 32], out_channels=8),
    decode_head=dict(in_channels=[8, 8, 8, 8], channels=8),
)
resize = dict(type='Resize', scale=(96, 64), keep_ratio=True)
labels = dict(type='LoadAnnotations')
image = dict(type='LoadImageFromFile')
pack = dict(type='PackSegInputs')
workers = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    batch_size=2,
    dataset=dict(
        pipeline=[image, labels, dict(type='RandomCrop', crop_size=(64, 64)), pack]
    ),
    **workers,
)
val_dataloader = dict(dataset=dict(pipeline=[image, resize, labels, pack]), **workers)
test_dataloader = val_dataloader
tta_pipeline = [
    image,
    dict(
        type='TestTimeAug',
        transforms=[
            [resize, dict(type='Resize', scale=(144, 96), keep_ratio=True)],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [labels],
            [pack],
        ],
    ),
]
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=2), logger=dict(interval=1))
"""


@pytest.fixture(scope='session')
def flat_config(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The small config without `_base_`, which takes mmengine a while to resolve."""
    path = tmp_path_factory.mktemp('config') / 'small.py'
    path.write_text(SMALL_CONFIG)
    return Config.fromfile(path).pretty_text


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flat_config: str) -> Path:
    """A folder with ``small.py`` and data, in which the test then runs."""
    random = np.random.default_rng(0)
    for part in ('training', 'validation'):
        for kind in ('images', 'annotations'):
            (tmp_path / 'data/ade/ADEChallengeData2016' / kind / part).mkdir(
                parents=True
            )
        for index in range(3):
            for kind, suffix, shape, top in (
                ('images', 'jpg', (70, 90, 3), 256),
                ('annotations', 'png', (70, 90), 6),
            ):
                array = random.integers(top, size=shape).astype(np.uint8)
                folder = tmp_path / 'data/ade/ADEChallengeData2016' / kind / part
                Image.fromarray(array).save(folder / f'{index}.{suffix}')
    (tmp_path / 'small.py').write_text(flat_config)
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


def run_tool(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, 'argv', [name, *arguments])
    try:
        runpy.run_path(str(ROOT / 'tools' / name), run_name='__main__')
    except SystemExit as exit_:
        if exit_.code:
            raise


def logged(work_dir: Path) -> list[dict]:
    """What the runs in a work dir logged, run by run."""
    return [
        json.loads(line)
        for file in sorted(work_dir.glob('*/vis_data/scalars.json'))
        for line in file.read_text().splitlines()
    ]


def losses(work_dir: Path) -> dict[int, float]:
    """Maps iterations to their loss."""
    return {row['step']: row['loss'] for row in logged(work_dir) if 'loss' in row}


def results(work_dir: Path) -> list[float]:
    """The mean IoUs of the tests in a work dir."""
    rows = [json.loads(path.read_text()) for path in work_dir.glob('*/*.json')]
    return [row['mIoU'] for row in rows]


@pytest.mark.usefixtures('one_thread')
def test_train_resume_and_test_run_to_their_end(project: Path, monkeypatch, capsys):
    run_tool(monkeypatch, 'train.py', 'small.py')
    work_dir = project / 'work_dirs/small'
    assert sorted(losses(work_dir)) == [1, 2]
    first = torch.load(work_dir / 'iter_2.pth', weights_only=True)

    options = ['--resume', '--cfg-options', 'train_cfg.max_iters=4']
    run_tool(monkeypatch, 'train.py', 'small.py', *options)
    assert sorted(losses(work_dir)) == [1, 2, 3, 4]
    assert all(math.isfinite(loss) for loss in losses(work_dir).values())
    assert not (work_dir / 'earlier_1').exists()
    last = torch.load(work_dir / 'iter_4.pth', weights_only=True)
    name = 'backbone.patch_embeds.0.projection.weight'
    assert not torch.equal(last['state_dict'][name], first['state_dict'][name])

    checkpoint = str(work_dir / 'iter_4.pth')
    options = ['--out', 'predictions', '--show-dir', 'drawings', '--work-dir', 'plain']
    # A process has one visualizer of a name, and training made one already.
    options += ['--cfg-options', 'visualizer.name=drawing']
    run_tool(monkeypatch, 'test.py', 'small.py', checkpoint, *options)
    run_tool(
        monkeypatch, 'test.py', 'small.py', checkpoint, '--tta', '--work-dir', 'tta'
    )
    assert len(results(project / 'plain')) == len(results(project / 'tta')) == 1
    assert 0 <= results(project / 'plain')[0] <= 100
    assert 'mIoU' in capsys.readouterr().out

    for index in range(3):
        labels = np.asarray(Image.open(project / f'predictions/{index}.png'))
        assert labels.shape == (70, 90)
        assert 1 <= labels.min() <= labels.max() <= 150
    assert len(list((project / 'drawings').rglob('*.png'))) == 3


def test_augmented_evaluation_averages_over_scales_and_flips(
    project: Path, monkeypatch
):
    cfg = Config.fromfile('small.py')
    model = cfg.model
    cli.use_test_time_augmentation(cfg)

    assert cfg.model.type == 'SegTTAModel'
    assert cfg.model.module == model
    assert cfg.test_dataloader.dataset.pipeline == cfg.tta_pipeline


def test_new_run_keeps_the_checkpoints_of_an_earlier_one(project: Path):
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


def test_only_the_first_process_moves_checkpoints(project: Path, monkeypatch):
    monkeypatch.setenv('RANK', '1')
    (project / 'runs').mkdir()
    (project / 'runs/iter_2.pth').touch()

    assert train.set_aside_checkpoints(Config({'work_dir': 'runs'})) is None
    assert (project / 'runs/iter_2.pth').exists()


@pytest.mark.parametrize('given', ['none', 'slurm', 'mpi'])
def test_a_launcher_that_is_given_is_used(given: str, monkeypatch):
    for name in cli.TORCHRUN_VARIABLES:
        monkeypatch.setenv(name, '0')

    assert cli.find_launcher(given) == given


def test_torchrun_is_detected(monkeypatch):
    for name in cli.TORCHRUN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert cli.find_launcher(None) == 'none'

    for name in cli.TORCHRUN_VARIABLES:
        monkeypatch.setenv(name, '0')
    assert cli.find_launcher(None) == 'pytorch'


def test_options_replace_settings_of_the_config(project: Path, monkeypatch):
    parser = argparse.ArgumentParser()
    cli.add_common_arguments(parser)
    options = ['train_cfg.max_iters=7', 'model.backbone.init_cfg=None']
    args = parser.parse_args(['small.py', '--cfg-options', *options])
    cfg = cli.read_run_config(args)

    assert cfg.train_cfg.max_iters == 7
    assert cfg.model.backbone.init_cfg is None
    assert cfg.work_dir == 'work_dirs/small'


def test_learning_rate_scales_with_the_batch_size(project: Path):
    cfg = Config.fromfile('small.py')
    train.scale_learning_rate(cfg)

    assert cfg.auto_scale_lr == {'enable': True, 'base_batch_size': 32}


def test_mixed_precision_replaces_the_optimizer_wrapper(project: Path, monkeypatch):
    monkeypatch.setattr(train, 'get_device', lambda: 'cuda')
    cfg = Config.fromfile('small.py')
    train.use_mixed_precision(cfg)

    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert cfg.optim_wrapper.loss_scale == 'dynamic'
    assert cfg.optim_wrapper.optimizer.type == 'AdamW'


def no_data(project: Path) -> None:
    (project / 'data').rename(project / 'elsewhere')


def earlier_predictions(project: Path) -> None:
    (project / 'predictions').mkdir()
    (project / 'predictions/0.png').touch()


def earlier_run(project: Path) -> None:
    (project / 'work_dirs/small').mkdir(parents=True)
    (project / 'work_dirs/small/iter_2.pth').touch()


def weights_alone(project: Path) -> None:
    torch.save({'state_dict': {'a': torch.zeros(1)}}, project / 'weights.pth')


def needs_what_is_not_there(project: Path) -> None:
    add_line(
        project,
        "custom_imports = dict(imports=['no_such_module'], allow_failed_imports=False)",
    )


def add_line(project: Path, line: str) -> None:
    with (project / 'small.py').open('a') as file:
        file.write(f'{line}\n')


def syntax_error(project: Path) -> None:
    add_line(project, 'model = dict(')


def no_base(project: Path) -> None:
    (project / 'derived.py').write_text("_base_ = 'mmseg::_base_/nowhere.py'\n")


def no_tta_model(project: Path) -> None:
    add_line(project, 'tta_model = None')


def no_hook(project: Path) -> None:
    add_line(project, "del default_hooks['visualization']")


def no_base_batch_size(project: Path) -> None:
    add_line(project, 'auto_scale_lr = dict(enable=False)')


@pytest.mark.parametrize(
    ('prepare', 'command', 'said'),
    [
        (None, 'train.py smal.py', "config: 'smal.py' does not exist; did you mean sm"),
        (None, 'train.py .', "config: '.' is a folder, not a file"),
        (None, 'train.py data.txt', "config: 'data.txt' does not exist"),
        (
            syntax_error,
            'train.py small.py',
            "config: 'small.py' cannot be read: '(' was never closed",
        ),
        (
            no_base,
            'train.py derived.py',
            "config: 'derived.py' cannot be read: ",
        ),
        (
            None,
            'train.py small.py --cfg-options train_cfg.max_iters.x=1',
            '--cfg-options: ',
        ),
        (None, 'test.py small.py no.pth', "checkpoint: 'no.pth' does not exist"),
        (
            earlier_run,
            'test.py small.py work_dirs/small/iter_9.pth',
            'did you mean work_dirs/small/iter_2.pth?',
        ),
        (
            earlier_run,
            'test.py small.py work_dirs/small',
            "'work_dirs/small' is a folder, not a file; did you mean "
            'work_dirs/small/iter_2.pth?',
        ),
        (
            no_data,
            'train.py small.py',
            "train_dataloader: the folder 'data/ade/ADEChallengeData2016/images/"
            "training' does not exist",
        ),
        (no_data, 'test.py small.py http://x/y.pth', 'test_dataloader: the folder'),
        (
            None,
            'train.py small.py --launcher pytorch',
            '--launcher pytorch: RANK and WORLD_SIZE not set in the environment',
        ),
        (
            None,
            'train.py small.py --cfg-options load_from=no.pth',
            "load_from: 'no.pth' does not exist",
        ),
        (
            weights_alone,
            'train.py small.py --resume --cfg-options load_from=weights.pth',
            "--resume: 'weights.pth' has no meta and no optimizer: it holds weights",
        ),
        (
            needs_what_is_not_there,
            'train.py small.py',
            "imports what cannot be imported: No module named 'no_such_module'",
        ),
        (
            earlier_run,
            'train.py small.py --cfg-options load_from=work_dirs/small/iter_2.pth',
            'lies in the work_dir, whose checkpoints the new run would replace',
        ),
        (
            no_base_batch_size,
            'train.py small.py --auto-scale-lr',
            'the config has no auto_scale_lr.base_batch_size',
        ),
        (
            no_tta_model,
            'test.py small.py http://x/y.pth --tta',
            '--tta: the config has no tta_model',
        ),
        (
            no_hook,
            'test.py small.py http://x/y.pth --show-dir drawings',
            'the config has no default_hooks.visualization',
        ),
        (
            earlier_predictions,
            'test.py small.py http://x/y.pth --out predictions',
            "--out: 'predictions' is not empty",
        ),
    ],
)
def test_mistakes_get_one_sentence(
    prepare, command: str, said: str, project: Path, monkeypatch, capsys
):
    if prepare is not None:
        prepare(project)
    before = sorted(project.rglob('*'))

    with pytest.raises(SystemExit) as exit_:
        run_tool(monkeypatch, *command.split())

    error = capsys.readouterr().err.splitlines()[-1]
    assert exit_.value.code == 2
    assert error.startswith(f'{command.split()[0]}: error: ')
    assert said in error
    assert sorted(project.rglob('*')) == before


@pytest.mark.parametrize(
    ('option', 'said'),
    [
        ('model.backbone.arch=tiny', "arch='tiny' is unknown; give one of"),
        (
            'optim_wrapper.constructor=mmseg_twins.LayerDecayOptimWrapperConstructor',
            'decay_rate',
        ),
    ],
)
def test_settings_that_cannot_work_get_one_sentence(
    option: str, said: str, project: Path, monkeypatch, capsys
):
    with pytest.raises(SystemExit) as exit_:
        run_tool(monkeypatch, 'train.py', 'small.py', '--cfg-options', option)

    error = capsys.readouterr().err.splitlines()[-1]
    assert exit_.value.code == 2
    assert error.startswith('train.py: error: ')
    assert said in error


def test_mixed_precision_without_gpu_gets_one_sentence(
    project: Path, monkeypatch, capsys
):
    monkeypatch.setattr(train, 'get_device', lambda: 'cpu')
    with pytest.raises(SystemExit) as exit_:
        run_tool(monkeypatch, 'train.py', 'small.py', '--amp')

    assert exit_.value.code == 2
    assert '--amp: mmengine trains in mixed precision on a GPU' in (
        capsys.readouterr().err
    )


def test_windows_without_display_get_one_sentence(project: Path, monkeypatch, capsys):
    for name in ('DISPLAY', 'WAYLAND_DISPLAY'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, 'platform', 'linux')
    with pytest.raises(SystemExit) as exit_:
        run_tool(monkeypatch, 'test.py', 'small.py', 'http://x/y.pth', '--show')

    assert exit_.value.code == 2
    assert '--show: there is no display' in capsys.readouterr().err


def test_option_without_value_gets_one_sentence(project: Path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit_:
        run_tool(monkeypatch, 'train.py', 'small.py', '--cfg-options', 'max_iters')

    assert exit_.value.code == 2
    assert "'max_iters' is no KEY=VALUE pair" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_on_the_cpu_train_and_test(project: Path):
    run_in_two('train.py', 'small.py', folder=project)
    run_in_two('test.py', 'small.py', 'work_dirs/small/iter_2.pth', folder=project)

    assert all(math.isfinite(loss) for loss in losses(Path('work_dirs/small')).values())
    assert sorted(losses(Path('work_dirs/small'))) == [1, 2]
    assert len(results(Path('work_dirs/small'))) == 1
    logs = [path.read_text() for path in Path('work_dirs/small').rglob('*.log')]
    assert any('GPU number: 2' in log for log in logs)  # mmengine's word for processes
