"""What ``python -m mmseg_twins`` finds, on made-up machines and on this one."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from mmseg_twins.cli import doctor as diagnosis
from mmseg_twins.cli.doctor import Facts, checks, facts, find_problems, report
from mmseg_twins.compat import versions

ROOT = Path(__file__).parents[2]
HEALTHY = {
    'torch': '2.13.0+cpu',
    'torchvision': '0.28.0',
    'mmcv-lite': '2.1.0',
    'mmengine': '0.10.7',
    'mmsegmentation': '1.2.2',
    'openmim': '0.3.9',
    'openxlab': '0.0.11',
    'setuptools': '81.0.0',
    'numpy': '2.4.6',
    'opencv-python': '5.0.0.93',
    'ftfy': '6.3.1',
    'regex': '2026.11.15',
    'safetensors': '0.8.0',
    'matplotlib': '3.11.2',
    'packaging': '26.3',
    'pillow': '13.0.0',
    'rich': '15.0.0',
}
NEEDS = 'torch==2.13.0'
INSTALL_MMCV = "pip install 'mmcv-lite>=2.1.0,<2.2.0'"


def machine(changes: dict[str, str | None], **others) -> Facts:
    """A healthy machine with other versions; None is not installed."""
    found = {**HEALTHY, **changes}
    kept = {name: version for name, version in found.items() if version is not None}
    usual = {'torchvision_needs': NEEDS, 'forward': {'cpu': None}}
    return Facts(kept, **{**usual, **others})


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'mmcv-lite': None, 'mmcv': '2.1.0'},
        {'torch': '2.13.0+cu130', 'setuptools': '77.0.3'},
        {'openmim': None, 'openxlab': '0.1.3'},
    ],
)
def test_a_healthy_machine_has_no_problems(changes):
    assert find_problems(machine(changes)) == []


@pytest.mark.parametrize(
    ('changes', 'says', 'command'),
    [
        ({'ftfy': None}, 'ftfy is missing', 'pip install ftfy'),
        ({'regex': None}, 'regex is missing', 'pip install regex'),
        ({'mmcv-lite': None}, 'mmcv is missing', INSTALL_MMCV),
        (
            {'mmcv-lite': '2.2.0'},
            'mmcv-lite 2.2.0 does not work',
            f'pip uninstall -y mmcv-lite && {INSTALL_MMCV}',
        ),
        (
            {'mmcv-lite': None, 'mmcv': '1.7.1'},
            'mmcv 1.7.1 does not work',
            f'pip uninstall -y mmcv && {INSTALL_MMCV}',
        ),
        (
            {'mmcv': '2.1.0'},
            'mmcv and mmcv-lite are both installed',
            f'pip uninstall -y mmcv mmcv-lite && {INSTALL_MMCV}',
        ),
        (
            {'mmsegmentation': '0.30.0'},
            'mmsegmentation 0.30.0 is installed, and mmsegmentation>=1.2.2,<2',
            "pip install 'mmsegmentation>=1.2.2,<2'",
        ),
        (
            {'mmsegmentation': None},
            'mmsegmentation is missing',
            "pip install 'mmsegmentation>=1.2.2,<2'",
        ),
        (
            {'setuptools': '82.0.0'},
            'setuptools 82.0.0 is installed',
            "pip install 'setuptools>=77.0.3,<82'",
        ),
        (
            {'openxlab': '0.1.3'},
            'openxlab 0.1.3 came with mim',
            "pip install openxlab==0.0.11 'setuptools>=77.0.3,<82'",
        ),
    ],
)
def test_each_incompatibility_has_its_sentence_and_its_command(changes, says, command):
    (problem,) = find_problems(machine(changes))

    assert problem.says.startswith(says)
    assert problem.command == command


def test_a_torchvision_of_another_torch_is_named():
    found = machine({'torchvision': '0.21.0'}, torchvision_needs='torch==2.6.0')
    (problem,) = find_problems(found)
    assert problem.says == (
        'torchvision 0.21.0 needs torch==2.6.0, and torch 2.13.0+cpu is installed'
    )
    assert problem.command == "pip install 'torchvision==0.28.*'"


def test_a_torch_that_is_too_old_is_named():
    found = machine({'torch': '2.4.1', 'torchvision': None}, torchvision_needs=None)
    (problem,) = find_problems(found)
    assert problem.says.startswith('torch 2.4.1 is installed, and torch>=2.7 is needed')
    assert problem.command == "pip install 'torch>=2.7'"


@pytest.mark.parametrize(
    ('module', 'error', 'command'),
    [
        ('numpy', 'broken', 'pip install --force-reinstall numpy'),
        ('torch', 'broken', 'pip install --force-reinstall torch'),
        ('torchvision', 'broken', 'pip install --force-reinstall torchvision'),
        (
            'cv2',
            'libGL.so.1: cannot open shared object file',
            'pip uninstall -y opencv-python && pip install opencv-python-headless',
        ),
        (
            'cv2',
            'compiled using NumPy 1.x',
            'pip install --upgrade --force-reinstall numpy opencv-python',
        ),
    ],
)
def test_an_import_that_fails_is_named_with_its_command(module, error, command):
    errors = {module: error, 'mmengine': 'for that reason'}
    (problem,) = find_problems(machine({}, errors=errors))

    assert problem.says == f'{module} cannot be imported: {error}'
    assert problem.command == command


def test_what_fails_for_a_known_reason_is_not_said_again():
    found = machine(
        {'ftfy': None}, errors={'mmseg.models': 'no ftfy'}, forward={'cpu': 'no'}
    )
    assert [problem.says.split()[0] for problem in find_problems(found)] == ['ftfy']


def test_what_fails_for_no_known_reason_is_said():
    (problem,) = find_problems(machine({}, errors={'mmseg.models': 'odd'}))
    assert problem.says == 'mmseg.models cannot be imported: odd'


def test_compat_that_is_switched_off_is_the_reason():
    errors = {'mmseg.models': "No module named 'mmcv._ext'"}
    (problem,) = find_problems(machine({}, errors=errors, compat_off=True))
    assert problem.command == 'unset MMSEG_TWINS_COMPAT'


def test_a_device_that_does_not_compute_is_named():
    forward = {'cpu': None, 'cuda:0': 'no kernel image'}
    (problem,) = find_problems(machine({}, forward=forward))
    assert problem.says == (
        'a forward pass of a tiny Twins fails on cuda:0: no kernel image'
    )
    assert problem.command == 'pip install --upgrade --force-reinstall torch'


def test_the_requirements_are_those_of_the_package():
    tree = ast.parse((ROOT / 'setup.py').read_text(encoding='utf-8'))
    constants = {
        node.targets[0].id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    demanded = {
        (constants[item.id] if isinstance(item, ast.Name) else item).value
        for item in constants['INSTALL_REQUIRES'].elts
    }
    assert demanded == set(checks.REQUIREMENTS)
    assert f'mmcv-lite{constants["MMCV_RANGE"].value}' == checks.MMCV
    assert versions.INSTALL_MMCV == INSTALL_MMCV


def test_this_machine_is_healthy(capsys):
    assert diagnosis.main(['--json']) == 0

    found = json.loads(capsys.readouterr().out)
    assert found['problems'] == []
    shown = found['report']
    assert shown['packages']['torch'] == metadata.version('torch')
    assert shown['compat']['state'] == 'on'
    assert shown['imports']['mmseg.models'] == 'works'
    assert 'math' in shown['torch']['attention kernels on cpu']
    assert shown['devices']['cpu'] == 'a tiny Twins runs'
    assert not any(
        value.startswith('unknown')
        for lines in shown.values()
        for value in lines.values()
    )


def test_installed_versions_are_looked_up(monkeypatch, capsys):
    actual = metadata.version

    def version(name):
        if name == 'ftfy':
            raise metadata.PackageNotFoundError(name)
        return '82.0.1' if name == 'setuptools' else actual(name)

    monkeypatch.setattr(metadata, 'version', version)
    assert diagnosis.main([]) == 1

    lines = capsys.readouterr().out.splitlines()
    problems = [line for line in lines if line.startswith('problem: ')]
    assert [line.split()[1] for line in problems] == ['ftfy', 'setuptools']
    assert lines[-1] == "    run: pip install 'setuptools>=77.0.3,<82'"


def test_a_probe_that_fails_is_a_line(monkeypatch):
    def fail(*args):
        raise RuntimeError('no\nanswer')

    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', fail)
    monkeypatch.setattr(report.platform, 'platform', fail)
    lines = report.describe(machine({}))
    assert lines['torch']['cpu capability'] == 'unknown (no answer)'
    assert lines['machine']['system'] == 'unknown (no answer)'


def test_a_forward_pass_that_is_not_finite_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.Tensor, 'isfinite', torch.Tensor.isnan)
    assert facts.forward_error('cpu') == 'its features are not finite'


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
    says = [problem['says'] for problem in json.loads(done.stdout)['problems']]
    # The other is installed where the tests run.
    assert says[0].startswith(('mmcv and mmcv-lite are both', 'mmcv 9.9 does not'))
    assert says[1] == 'torch cannot be imported: torch is broken'
    assert len(says) == 2


def test_importing_the_package_raises_there(broken):
    for arguments in (['-c', 'import mmseg_twins'], ['-m', 'mmseg_twins.registry']):
        done = subprocess.run(
            [sys.executable, *arguments], env=broken, capture_output=True, text=True
        )
        assert done.returncode == 1
        assert 'ImportError: mmcv 9.9 does not work' in done.stderr
