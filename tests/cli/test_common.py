"""What the commands share."""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

import pytest

from mmseg_twins.cli import common as cli

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize('name', ['train', 'test', 'predict', 'export_onnx'])
def test_each_script_runs_its_command(name: str, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', [f'tools/{name}.py', '--help'])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / f'tools/{name}.py'), run_name='__main__')

    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f'usage: {name}.py ')
    assert '--cfg-options' in printed


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cli.add_common_arguments(parser)
    return parser.parse_args(arguments)


def test_options_override_settings_of_the_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    Path('small.py').write_text("train_cfg = dict(max_iters=2)\nload_from = 'x.pth'\n")
    options = ['--cfg-options', 'train_cfg.max_iters=7', 'load_from=None']
    cfg = cli.read_run_config(parse('small.py', *options))

    assert cfg.train_cfg.max_iters == 7
    assert cfg.load_from is None
    assert cfg.work_dir == 'work_dirs/small'


def test_options_import_modules_as_the_config_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path('small.py').write_text("custom_imports = dict(imports=['mmseg_twins'])\n")
    Path('module_of_a_user.py').touch()
    option = "custom_imports.imports=['module_of_a_user']"
    cli.read_config(parse('small.py', '--cfg-options', option))

    assert 'module_of_a_user' in sys.modules


def test_options_may_leave_out_the_imports(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('small.py').write_text("custom_imports = dict(imports=['mmseg_twins'])\n")
    cfg = cli.read_config(parse('small.py', '--cfg-options', 'custom_imports=None'))

    assert cfg.custom_imports is None


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
