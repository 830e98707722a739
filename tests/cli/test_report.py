"""``tools/test.py --report`` on a few small scenes."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS

from builders import run_in_two, small_demo
from mmseg_twins.cli import test
from mmseg_twins.evaluation import report_metric

VIEWS = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=(64, 64), keep_ratio=True)],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ],
    ),
]


@pytest.fixture(scope='module')
def project_files(scenes: Path, tmp_path_factory) -> Path:
    """The config ``small.py``, one that resizes annotations, and random weights."""
    folder = tmp_path_factory.mktemp('project')
    cfg = small_demo(scenes)
    cfg.merge_from_dict({'tta_pipeline': VIEWS})
    (folder / 'small.py').write_text(cfg.pretty_text)
    _, resize, labels, _ = cfg.test_dataloader.dataset.pipeline
    resize.scale = (32, 32)
    cfg.test_dataloader.dataset.pipeline[1:3] = [labels, resize]
    (folder / 'resized.py').write_text(cfg.pretty_text)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        state = MODELS.build(cfg.model).state_dict()
    torch.save({'meta': {'iter': 17}, 'state_dict': state}, folder / 'weights.pth')
    return folder


@pytest.fixture
def project(project_files: Path, tmp_path: Path, monkeypatch) -> Iterator[Path]:
    """These files in a folder of the test's own, in which it runs."""
    for path in project_files.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    # mmengine formats the config for its log, which takes most of the time.
    monkeypatch.setattr(Config, 'pretty_text', 'left out')
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


def logged(work_dir: Path) -> dict:
    """The scores that a test has logged."""
    (path,) = work_dir.glob('*/*.json')
    return json.loads(path.read_text())


@pytest.mark.parametrize('options', [[], ['--tta']], ids=['plain', 'tta'])
def test_a_report_has_the_tests_scores_and_says_what_was_evaluated(project, options):
    command = ['small.py', 'weights.pth', '--work-dir', 'run', '--report', 'a/report']
    assert test.main([*command, *options]) == 0

    assert sorted(os.listdir('a/report')) == ['index.html', 'report.json']
    numbers = json.loads(Path('a/report/report.json').read_text())
    scores = logged(project / 'run')
    for key in ('mIoU', 'aAcc', 'mAcc', 'mBoundaryIoU'):
        assert numbers[key] == pytest.approx(scores[key], abs=0.01)
    about = numbers['about']
    assert about['config'].endswith('small.py')
    assert about['checkpoint'] == 'weights.pth'
    assert about['iteration'] == 17
    assert about['images'] == 2
    assert about['folder'].endswith('images/validation')
    assert about['test-time augmentation'] == ('yes' if options else 'no')
    page = Path('a/report/index.html').read_text(encoding='utf-8')
    assert 'Evaluation of weights.pth' in page
    assert page.count('alt="The image ') == 2


@pytest.mark.slow
def test_two_processes_make_the_report_of_one(project: Path):
    run_in_two('test.py', 'small.py', 'weights.pth', '--report', 'two', folder=project)
    assert test.main(['small.py', 'weights.pth', '--report', 'one']) == 0
    one, two = (
        json.loads(Path(f'{n}/report.json').read_text()) for n in ('one', 'two')
    )
    for numbers in (one, two):
        del numbers['about']['date']
    assert one == two


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        (['--report', 'full'], "--report: 'full' is not empty; give a new folder"),
        (['--report', 'weights.pth'], "--report: 'weights.pth' is not empty"),
        (
            ['--report', 'new', '--cfg-options', 'test_evaluator.format_only=True'],
            '--report: test_evaluator has format_only=True',
        ),
        (['--report', 'small.py/a'], "--report: 'small.py/a' cannot be written to"),
    ],
)
def test_a_report_that_cannot_be_made_is_refused_before_the_test(
    project: Path, capsys, options, said
):
    (project / 'full').mkdir()
    (project / 'full/mine.txt').write_text('keep')
    with pytest.raises(SystemExit) as stop:
        test.main(['small.py', 'weights.pth', *options])

    assert stop.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert (project / 'full/mine.txt').read_text() == 'keep'
    assert not (project / 'new').exists()


def test_annotations_that_were_resized_are_named(project: Path, capsys):
    with pytest.raises(SystemExit) as stop:
        test.main(['resized.py', 'weights.pth', '--report', 'new'])

    assert stop.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert 'put LoadAnnotations after Resize' in error


def test_a_full_disk_is_named_and_leaves_nothing_behind(
    project: Path, monkeypatch, capsys
):
    def page(*_) -> str:
        monkeypatch.setattr(Path, 'write_bytes', full_disk)
        return 'page'

    def full_disk(*_) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(report_metric, 'make_page', page)
    with pytest.raises(SystemExit) as stop:
        test.main(['small.py', 'weights.pth', '--report', 'new'])

    assert stop.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        'test.py: error: new/report.json could not be written (No space left on '
        'device); nothing was changed'
    )
    assert os.listdir('new') == []
