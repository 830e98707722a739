"""Ctrl-C: one line, the status 130, and nothing half-done, whenever it comes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import pytest
import torch

import mmseg_twins
from builders import ROOT, small_demo
from mmseg_twins import interrupts
from mmseg_twins.apis.export import DEPLOY_PACKAGES
from mmseg_twins.apis.loading import build_segmentor
from mmseg_twins.cli.main import COMMANDS

SCRIPTS = [
    path
    for path in sorted((ROOT / 'tools').glob('*/*.py')) + [*ROOT.glob('tools/t*.py')]
    if '__main__' in (text := path.read_text())
    and re.search('from (mmseg_twins|scene_folder)', text)
]
SCRIPTS += [ROOT / 'tools/predict.py', ROOT / 'tools/export_onnx.py']
# Runs a program up to an event of Python's audit hooks, where a file appears; it goes
# on from there when another file appears.
PAUSING = """
import runpy, sys, time
from pathlib import Path

event, part, reached, released, *sys.argv = sys.argv[1:]
program = Path(sys.argv[0])


def pause(name, arguments):
    if name == event and part in str(arguments[0]) and not Path(reached).exists():
        Path(reached).touch()
        while not Path(released).exists():
            time.sleep(0.05)


sys.addaudithook(pause)
if program.suffix == '.py':
    sys.path[0] = str(program.parent)
    runpy.run_path(str(program), run_name='__main__')
else:  # as the console script does
    from mmseg_twins.cli.main import main

    sys.exit(main())
"""


class Program:
    """A program that is run up to an event.

    Args:
        arguments: path of a script, or ``mmseg-twins``; then its arguments.
        event: name of the event, and a part of its first argument.
        folder: with files of the program's own, to run in.
    """

    def __init__(
        self, *arguments: object, event: tuple[str, str] = ('', ''), folder: Path
    ) -> None:
        self.reached, self.released = (
            folder.with_name(f'{folder.name}_{name}')
            for name in ('reached', 'released')
        )
        self.process = subprocess.Popen(
            [sys.executable, '-c', PAUSING, *event, self.reached, self.released]
            + [str(argument) for argument in arguments],
            cwd=folder,
            env=os.environ
            | dict(
                OMP_NUM_THREADS='1',
                PYTHONPATH=os.pathsep.join(
                    (str(ROOT), str(folder), os.environ['PYTHONPATH'])
                ),
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # A shell lets its background jobs ignore SIGINT.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def interrupt(self, when: Callable[[], bool] | None = None) -> list[str]:
        """Press Ctrl-C at the event, or at another moment; return the lines on stderr.

        A terminal sends the signal to all processes of a program.
        """
        is_time = when or self.reached.exists
        end = time.monotonic() + 120
        while not is_time():
            if self.process.poll() is not None or time.monotonic() > end:
                pytest.fail(f'never there: {self.process.communicate()}')
            time.sleep(0.02)
        os.killpg(self.process.pid, signal.SIGINT)
        return self.wait()

    def wait(self) -> list[str]:
        """Wait for its end after Ctrl-C; return the lines on stderr."""
        self.released.touch()
        out, err = self.process.communicate(timeout=60)
        assert self.process.returncode == 130, err
        assert 'Traceback' not in out + err
        return err.splitlines()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / 'folder').mkdir()
    return tmp_path / 'folder'


def test_what_a_launcher_passes_on_is_no_second_ctrl_c(monkeypatch):
    monkeypatch.setattr(interrupts, '_last_raised', -interrupts.GRACE)
    with pytest.raises(KeyboardInterrupt):
        interrupts.raise_once(signal.SIGINT, None)
    interrupts.raise_once(signal.SIGINT, None)

    monkeypatch.setattr(interrupts, 'GRACE', 0.0)
    with pytest.raises(KeyboardInterrupt):
        interrupts.raise_once(signal.SIGINT, None)


@pytest.fixture
def handle() -> Iterator[Callable]:
    """Sets how Ctrl-C is handled, for the time of a test."""
    before = signal.getsignal(signal.SIGINT)
    yield lambda handler: signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize('handler', [signal.SIG_IGN, lambda number, frame: None])
def test_ctrl_c_that_is_ignored_or_handled_stays_so(handler, handle: Callable):
    handle(handler)
    interrupts.end_at_interrupt()
    with interrupts.raising(), interrupts.ending():
        assert signal.getsignal(signal.SIGINT) is handler


def test_ctrl_c_raises_within_a_program_and_ends_it_elsewhere(handle: Callable):
    handle(signal.default_int_handler)
    interrupts.end_at_interrupt()
    assert signal.getsignal(signal.SIGINT) is interrupts.end
    found = interrupts.run(lambda: signal.getsignal(signal.SIGINT))
    assert found is interrupts.raise_once
    assert signal.getsignal(signal.SIGINT) is interrupts.end


@pytest.mark.parametrize(
    ('argument', 'expected'),
    [
        ('/usr/bin/mmseg-twins', True),
        ('/usr/bin/twins2mmseg', True),
        (str(ROOT / 'tools/train.py'), True),
        (str(ROOT / 'tools/demo/quickstart.py'), True),
        ('/home/me/tools/train.py', False),
        ('', False),  # Python asks for input
        ('-c', False),
    ],
)
def test_scripts_of_others_are_no_programs(argument: str, expected: bool, monkeypatch):
    monkeypatch.chdir(ROOT / 'tools')
    monkeypatch.setattr(sys, 'argv', [argument])
    assert mmseg_twins.is_program() is expected


def left(folder: Path) -> list[str]:
    """The names of the files in a folder, at any depth."""
    return sorted(path.name for path in folder.rglob('*') if path.is_file())


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.stem)
def test_scripts_end_with_a_line_while_they_import(script: Path, folder: Path):
    program = Program(script, event=('import', 'torch'), folder=folder)
    assert program.interrupt() == [f'{script.name}: interrupted']


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.stem)
def test_scripts_may_clean_up_once_they_run(script: Path):
    assert re.search(r'sys\.exit\(run(_program)?\(main\)\)', script.read_text())


@pytest.mark.parametrize('command', COMMANDS)
def test_commands_end_with_a_line_while_they_import(command: str, folder: Path):
    program = Program('mmseg-twins', command, event=('import', 'torch'), folder=folder)
    assert program.interrupt() == ['mmseg-twins: interrupted']


def test_new_writes_all_of_the_config_or_nothing(folder: Path):
    arguments = ('mmseg-twins', 'new', 'config.py')
    program = Program(*arguments, event=('os.link', '.config.py'), folder=folder)
    assert program.interrupt() == ['mmseg-twins new: interrupted']
    assert left(folder) == []


def test_a_converted_checkpoint_is_there_or_not(classifier: Path, folder: Path):
    script = ROOT / 'tools/model_converters/twins2mmseg.py'
    event = ('os.link', '.store.pth')
    program = Program(script, classifier, 'store.pth', event=event, folder=folder)
    assert program.interrupt() == [
        'twins2mmseg: error: interrupted; nothing was written'
    ]
    assert left(folder) == []


def test_weights_that_are_being_fetched_leave_nothing(
    weight_hosts, folder: Path, tmp_path: Path, monkeypatch
):
    weight_hosts.moods['hub'] = 'hang'
    for name in ('TORCH_HOME', 'HF_HOME'):
        monkeypatch.setenv(name, str(tmp_path / name))
    arguments = ('mmseg-twins', 'weights', 'svt-s', '--to', 'copies')
    program = Program(*arguments, folder=folder)
    first, last = program.interrupt(when=lambda: len(weight_hosts.asked) > 0)
    assert first.startswith('twins://svt-s: trying ')
    assert last == 'mmseg-twins weights: interrupted'
    assert left(folder) == []
    kept = left(tmp_path / 'TORCH_HOME') + left(tmp_path / 'HF_HOME')
    assert [name for name in kept if not name.endswith('.lock')] == []


def test_predictions_are_whole_or_not_there(pictures: Path):
    program = Program(
        *(ROOT / 'tools/predict.py', 'config.py', 'weights.pth', 'a.png', 'b.png'),
        *('--out-dir', 'out'),
        event=('os.link', '.b.png'),
        folder=pictures,
    )
    assert program.interrupt()[-1].startswith('predict.py: interrupted')
    assert left(pictures / 'out') == ['a.png', 'a.png']
    for path in (pictures / 'out').rglob('*.png'):
        assert cv2.imread(str(path)) is not None


@pytest.mark.parametrize('jobs', [1, 2])
def test_datasets_are_checked_up_to_the_interruption(
    jobs: int, scenes: Path, folder: Path
):
    parts = (scenes / kind / 'training' for kind in ('images', 'annotations'))
    images, masks = (path.absolute() for path in parts)
    program = Program(
        ROOT / 'tools/analysis_tools/check_dataset.py',
        *('--images', images, '--masks', masks, '--classes', 8, '--jobs', jobs),
        *('--plot', 'plot.png'),
        event=('open', str(masks)),
        folder=folder,
    )
    assert program.interrupt()[-1] == 'check_dataset.py: interrupted'
    assert left(folder) == []


TRACED = """
import os
import signal

import torch

from mmseg_twins.models.backbones import SVT
from mmseg_twins.registry import MODELS


class Last:
    # Below this method, as below native code's calls, an exception goes nowhere.
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(9):
            pass


@MODELS.register_module()
class Interrupting(SVT):
    def forward(self, image):
        if torch.compiler.is_exporting():
            Last()
        return super().forward(image)
"""


def export(folder: Path, name: str, config: str, **options) -> Program:
    """Start an export; the config may import modules of the folder."""
    (folder / 'small.py').write_text(config)
    return Program(
        *(ROOT / 'tools/export_onnx.py', 'small.py', 'none', name, '--size', 64, 64),
        **options,
        folder=folder,
    )


@pytest.mark.parametrize('name', ['out.onnx', 'out.pt2'])
def test_an_export_that_is_traced_leaves_nothing(name: str, folder: Path, config_text):
    if name == 'out.onnx':
        require_deploy()
    (folder / 'traced.py').write_text(TRACED)
    text = config_text(stages=2, depths=(1, 1), pool_scales=(2,))
    text = text.replace("imports=['mmseg_twins']", "imports=['traced']")
    program = export(folder, name, text.replace('.SVT', '.Interrupting'))
    assert program.wait()[-1] == 'export_onnx.py: interrupted'
    assert name not in ' '.join(left(folder))


@pytest.mark.parametrize('event', [('open', '.out.onnx.'), ('import', 'onnxruntime')])
def test_an_onnx_file_that_is_not_checked_is_removed(
    event: tuple[str, str], folder: Path, config_text
):
    require_deploy()
    text = config_text(stages=2, depths=(1, 1), pool_scales=(2,))
    program = export(folder, 'out.onnx', text, event=event)
    assert program.interrupt()[-1] == 'export_onnx.py: interrupted'
    assert 'out.onnx' not in ' '.join(left(folder))


def require_deploy() -> None:
    for name in DEPLOY_PACKAGES:
        pytest.importorskip(name, reason='comes with the extra `deploy`')


@pytest.mark.slow
def test_processes_that_load_data_print_nothing(scenes: Path, folder: Path):
    cfg = small_demo(scenes)
    cfg.test_dataloader.update(num_workers=2, persistent_workers=True)
    (folder / 'small.py').write_text(cfg.pretty_text)
    state = build_segmentor(cfg).state_dict()
    torch.save({'state_dict': state}, folder / 'weights.pth')
    image = next(scenes.glob('images/validation/*'))
    arguments = (ROOT / 'tools/test.py', 'small.py', 'weights.pth')
    program = Program(*arguments, event=('open', image.name), folder=folder)
    assert program.interrupt()[-1] == 'test.py: interrupted'
