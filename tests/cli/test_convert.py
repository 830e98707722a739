"""The command itself, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from mmseg_twins.cli.convert import main

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / 'tools' / 'model_converters' / 'twins2mmseg.py'


def run(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        # Whether or not the package is installed.
        env=os.environ | {'PYTHONPATH': os.pathsep.join([str(ROOT), *sys.path[1:]])},
    )


def test_two_arguments_are_enough(classifier, store):
    done = run(classifier, store)

    assert done.returncode == 0, done.stderr
    assert done.stderr == ''
    assert 'official classifier, svt-s' in done.stdout
    assert str(store) in done.stdout
    assert 'state_dict' in torch.load(store, weights_only=True)


def test_failure_is_one_line_without_traceback(tmp_path, store):
    done = run(tmp_path / 'none.pth', store)

    assert done.returncode == 1
    assert done.stdout == ''
    assert done.stderr == (
        f'twins2mmseg: error: there is no file {tmp_path / "none.pth"}\n'
    )


def test_the_former_name_of_an_option_still_works(classifier, store, capsys):
    assert main([str(classifier), str(store), '--arch', 'svt-s']) == 0
    assert '--arch is deprecated; use --variant' in capsys.readouterr().err
