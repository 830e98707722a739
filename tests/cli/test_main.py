"""The command ``mmseg-twins``."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mmseg_twins.cli import main as command
from mmseg_twins.cli import train


@pytest.mark.parametrize('name', command.COMMANDS)
def test_an_error_names_the_command_that_was_typed(name: str, capsys):
    with pytest.raises(SystemExit) as exit_:
        command.main([name, '--no-such-option'])
    assert exit_.value.code == 2
    assert f'mmseg-twins {name}: error: ' in capsys.readouterr().err


def test_an_error_of_a_script_names_the_script(capsys):
    with pytest.raises(SystemExit):
        command.main(['train', '--no-such-option'])
    with pytest.raises(SystemExit):
        train.main(['--no-such-option'])
    assert 'train.py: error: ' in capsys.readouterr().err.splitlines()[-1]


def test_an_unknown_command_is_answered_with_those_that_exist(capsys):
    with pytest.raises(SystemExit) as exit_:
        command.main(['trian'])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert all(name in error for name in ('trian', *command.COMMANDS))


PROGRAM = """
import sys
sys.argv = ['mmseg-twins']
from mmseg_twins import compat
compat.activate()
import mmseg.models
from mmengine.registry import init_default_scope
from mmengine.visualization import Visualizer
from mmseg.engine.hooks import SegVisualizationHook
from mmseg.models.builder import build_loss

init_default_scope('mmseg')
Visualizer.get_instance('drawing')
SegVisualizationHook(draw=False)
build_loss(dict(type='CrossEntropyLoss'))
"""


def test_commands_show_the_warnings_that_a_user_can_act_on():
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count('Warning: ') == 1
    assert 'avg_non_ignore' in done.stderr
