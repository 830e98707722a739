"""What ``python -m mmseg_twins`` finds in made-up environments and in this one."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from mmseg_twins.cli import doctor
from mmseg_twins.compat import versions as versions_that_work

ROOT = Path(__file__).parents[2]
HEALTHY = {
    'mmseg_twins': '0.1.0',
    'torch': '2.13.0+cpu',
    'torchvision': '0.28.0',
    'mmcv-lite': '2.1.0',
    'mmengine': '0.10.7',
    'ftfy': '6.3.1',
    'mmsegmentation': '1.2.2',
    'numpy': '2.4.6',
    'opencv-python': '5.0.0.93',
    'setuptools': '81.0.0',
}
REQUIRES = {
    'mmseg_twins': [
        'torch>=2.7',
        'ftfy',
        'setuptools<82,>=77.0.3',
        'mmcv-lite<2.2.0,>=2.1.0; extra == "lite"',
        'onnx; extra == "deploy"',
    ],
    'torchvision': ['numpy', 'torch==2.13.0'],
}
INSTALL_MMCV = "pip install 'mmcv-lite>=2.1.0,<2.2.0'"
NO_STACK = dict.fromkeys(['mmcv-lite', 'mmengine', 'mmsegmentation'])
ONEDL = {
    'onedl-mmcv': '2.3.6',
    'onedl-mmengine': '0.10.12',
    'onedl-mmsegmentation': '1.4.2',
}


@pytest.fixture
def find_problems(monkeypatch):
    """Finds the problems of an environment that differs from a healthy one."""

    def find(
        versions: dict[str, str | None], errors: dict[str, str] | None = None
    ) -> list[doctor.Problem]:
        installed = {**HEALTHY, **versions}
        actual = importlib.import_module

        def import_module(name, *args):
            if errors and name in errors:
                raise ImportError(errors[name])
            return actual(name, *args)

        monkeypatch.setattr(doctor, 'version', installed.get)
        monkeypatch.setattr(versions_that_work, 'version', installed.get)
        monkeypatch.setattr(metadata, 'requires', REQUIRES.get)
        monkeypatch.setattr(importlib, 'import_module', import_module)
        return doctor.find_problems()

    return find


@pytest.mark.parametrize(
    'versions',
    [
        {},
        {'mmcv-lite': None, 'mmcv': '2.1.0'},
        {'torchvision': None},
        NO_STACK | ONEDL,
    ],
)
def test_a_healthy_environment_has_no_problems(find_problems, versions):
    assert find_problems(versions) == []


@pytest.mark.parametrize(
    ('versions', 'says', 'command'),
    [
        ({'ftfy': None}, 'ftfy is not installed', 'pip install ftfy'),
        (
            {'setuptools': '82.0.0'},
            'setuptools <82,>=77.0.3 is required, but 82.0.0 is installed',
            "pip install 'setuptools<82,>=77.0.3'",
        ),
        (
            {'torch': '2.4.1', 'torchvision': None},
            'torch >=2.7 is required, but 2.4.1 is installed',
            "pip install 'torch>=2.7'",
        ),
        ({'mmcv-lite': None}, 'mmcv-lite is not installed', INSTALL_MMCV),
        (
            {'mmcv-lite': None, 'mmcv': '1.7.1'},
            'mmcv 1.7.1 is installed, but mmseg_twins needs',
            f'pip uninstall -y mmcv && {INSTALL_MMCV}',
        ),
        (
            NO_STACK | ONEDL | {'onedl-mmcv': '2.2.0'},
            'onedl-mmcv 2.2.0 is installed, but mmseg_twins needs',
            "pip install 'onedl-mmcv>=2.3.6,<2.4'",
        ),
        (
            NO_STACK | ONEDL | {'mmcv': '2.1.0', 'onedl-mmcv': None},
            'mmcv, onedl-mmengine, onedl-mmsegmentation are installed and overwrite',
            'pip uninstall -y mmcv onedl-mmengine onedl-mmsegmentation && '
            "pip install 'mmseg_twins[lite]'",
        ),
        (
            {'torch': '2.12.1+cu130'},
            'torchvision 0.28.0 requires torch==2.13.0, but torch 2.12.1+cu130 is',
            'pip install torch==2.12.1 torchvision',
        ),
        ({'mmseg_twins': None}, 'mmseg_twins is not installed', 'pip install .'),
    ],
)
def test_a_version_that_does_not_work_has_its_command(
    find_problems, versions, says, command
):
    (problem,) = find_problems(versions)

    assert problem.says.startswith(says)
    assert problem.command == command


@pytest.mark.parametrize(
    ('module', 'error', 'command'),
    [
        ('numpy', 'broken', 'pip install --upgrade --force-reinstall numpy'),
        ('torch', 'broken', 'pip install --upgrade --force-reinstall torch'),
        (
            'cv2',
            'compiled using NumPy 1.x',
            'pip install --upgrade --force-reinstall opencv-python',
        ),
        (
            'cv2',
            'libGL.so.1: cannot open shared object file',
            'pip uninstall -y opencv-python && pip install opencv-python-headless',
        ),
        ('mmseg.models', 'odd', None),
    ],
)
def test_a_module_that_cannot_be_imported_is_named(
    find_problems, module, error, command
):
    (problem,) = find_problems({}, {module: error})

    assert problem == (f'{module} cannot be imported: {error}', command)


def test_symptoms_of_a_known_cause_are_left_out(find_problems):
    problems = find_problems({'ftfy': None}, {'mmseg.models': 'no ftfy'})
    assert [problem.says for problem in problems] == ['ftfy is not installed']


def test_disabled_compat_is_named_as_the_cause(find_problems, monkeypatch):
    monkeypatch.setenv('MMSEG_TWINS_COMPAT', '0')
    (problem,) = find_problems({}, {'mmseg.models': "No module named 'mmcv._ext'"})
    assert problem.command == 'unset MMSEG_TWINS_COMPAT'


def test_a_device_that_does_not_work_is_named(find_problems, monkeypatch):
    monkeypatch.setattr('torch.cuda.device_count', lambda: 1)
    (problem,) = find_problems({})
    assert problem.says.startswith('a model does not run on cuda:0: ')
    assert problem.command == 'pip install --upgrade --force-reinstall torch'


def test_this_environment_is_healthy(capsys):
    assert doctor.main(['--json']) == 0

    found = json.loads(capsys.readouterr().out)
    assert found['problems'] == []
    assert found['report']['torch'] == metadata.version('torch')
    assert 'MMEngine' in found['report']


def test_the_text_ends_with_problems_and_commands(monkeypatch, capsys):
    monkeypatch.setattr(
        doctor, 'find_problems', lambda: [doctor.Problem('a is broken', 'repair a')]
    )
    assert doctor.main([]) == 1

    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == ['', 'problem: a is broken', '    run: repair a']


@pytest.fixture
def broken(tmp_path):
    """An environment in which torch cannot be imported, and mmcv is of version 9.9."""
    (tmp_path / 'torch.py').write_text("raise ImportError('torch is broken')")
    (tmp_path / 'mmcv-9.9.dist-info').mkdir()
    (tmp_path / 'mmcv-9.9.dist-info/METADATA').write_text(
        'Metadata-Version: 2.1\nName: mmcv\nVersion: 9.9\n'
    )
    return {**os.environ, 'PYTHONPATH': f'{tmp_path}{os.pathsep}{ROOT}'}


def test_it_runs_where_the_package_cannot_be_imported(broken):
    arguments = [sys.executable, '-m', 'mmseg_twins', '--json']
    done = subprocess.run(arguments, env=broken, capture_output=True, text=True)

    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert 'mmcv' in found['problems'][0]['says']
    assert found['problems'][1]['says'] == ('torch cannot be imported: torch is broken')
    assert 'torch is broken' in found['report']['environment']


@pytest.mark.parametrize(
    'arguments', [['-c', 'import mmseg_twins'], ['-m', 'mmseg_twins.registry']]
)
def test_importing_the_package_raises_there(broken, arguments):
    done = subprocess.run(
        [sys.executable, *arguments], env=broken, capture_output=True, text=True
    )
    assert done.returncode == 1
    # mmcv-lite or onedl-mmcv may be installed where the tests run.
    says = "mmcv 9.9 is installed, but|mmcv.* overwrite each other's files"
    assert re.search(f'ImportError: .*({says})', done.stderr)
