"""What tools/setup_env.sh decides and says.

Every test runs it in a copy of the files that it reads, on a virtual environment whose
pip only notes down what it is asked for: nothing is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = (
    'setup.py', 'pyproject.toml', 'requirements/tested.txt', 'tools/setup_env.sh',
    'mmseg_twins/version.py',
)  # fmt: skip

pytestmark = pytest.mark.skipif(shutil.which('bash') is None, reason='needs bash')

METADATA = 'Metadata-Version: 2.1\nName: mmseg_twins\nVersion: 0.1.0\n'

# Notes its arguments, "installs" by leaving the metadata of mmseg_twins, and "builds"
# an empty wheel.
PIP = """
import os, pathlib, sys
site = pathlib.Path(__file__).parents[1]
with open(site / 'pip-calls.txt', 'a') as calls:
    print(*sys.argv[1:], file=calls)
if 'wheel' in sys.argv:
    wheels = pathlib.Path(sys.argv[sys.argv.index('-w') + 1])
    wheels.mkdir(exist_ok=True)
    (wheels / 'mmcv-2.1.0-py3-none-any.whl').touch()
if 'install' in sys.argv:
    if 'PIP_FAILS' in os.environ:
        sys.exit('ERROR: no such index')
    (site / 'mmseg_twins-0.1.0.dist-info').mkdir(exist_ok=True)
    (site / 'mmseg_twins-0.1.0.dist-info' / 'METADATA').write_text({metadata!r})
"""


class Project:
    """A copy of the project's set-up with a virtual environment of its own."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / 'project'
        for name in FILES:
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, self.root / name)
        (self.root / 'mmseg_twins' / '.mim').mkdir()
        (self.root / 'mmseg_twins' / '.mim' / 'model-index.yml').touch()
        # What a build leaves in the project's folder must not pass for an installation.
        (self.root / 'mmseg_twins.egg-info').mkdir()
        (self.root / 'mmseg_twins.egg-info' / 'PKG-INFO').write_text(METADATA)
        self.environment = folder / 'environment'
        venv.create(self.environment)
        (self.site,) = self.environment.glob('lib/python*/site-packages')
        (self.site / 'pip').mkdir()
        (self.site / 'pip' / '__init__.py').touch()
        (self.site / 'pip' / '__main__.py').write_text(PIP.format(metadata=METADATA))
        (self.site / 'cv2.py').touch()
        self.install_torch('2.13.0+cpu')

    def add_distribution(self, name: str) -> None:
        folder = self.site / f'{name.replace("-", "_")}-2.1.0.dist-info'
        folder.mkdir()
        metadata = f'Metadata-Version: 2.1\nName: {name}\nVersion: 2.1.0\n'
        (folder / 'METADATA').write_text(metadata)

    def install_torch(self, version: str) -> None:
        cuda = 'class cuda:\n    is_available = bool\n'
        (self.site / 'torch.py').write_text(f'{cuda}__version__ = {version!r}\n')

    def set_up(
        self, *arguments: str, **environment: str
    ) -> subprocess.CompletedProcess:
        """Runs the script with the environment active, from another folder."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name not in ('CONDA_PREFIX', 'CONDA_DEFAULT_ENV', 'PYTHONPATH')
        }
        return subprocess.run(
            ['bash', str(self.root / 'tools' / 'setup_env.sh'), *arguments],
            cwd=self.root.parent,
            env=inherited
            | {'VIRTUAL_ENV': str(self.environment)}
            | {'XDG_CACHE_HOME': str(self.root.parent / 'cache')}
            | environment,
            capture_output=True,
            text=True,
        )

    def pip_calls(self) -> list[str]:
        """Lists what pip was asked for, without the question for its version."""
        notes = self.site / 'pip-calls.txt'
        calls = notes.read_text().splitlines() if notes.exists() else []
        return [call for call in calls if call != '--version']


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def python_named(tmp_path: Path) -> Callable[[str], str]:
    """Makes a `python3` that claims a version; gives a PATH with it in front."""

    def make(version: str) -> str:
        folder = tmp_path / 'bin'
        folder.mkdir()
        for name in ('python3', 'python3.10', 'python3.11', 'python3.12', 'python3.13'):
            (folder / name).write_text(f'#!/bin/sh\necho {version}\n')
            (folder / name).chmod(0o755)
        return f'{folder}{os.pathsep}{os.environ["PATH"]}'

    return make


def test_active_environment_gets_the_tested_versions(project: Project):
    done = project.set_up()
    assert done.returncode == 0, done.stderr
    install, check = project.pip_calls()
    assert '-c requirements/tested.txt -e .[lite,mim,deploy,test]' in install
    assert check == 'check'


def test_active_conda_environment_is_used(project: Project):
    done = project.set_up(
        VIRTUAL_ENV='', CONDA_PREFIX=str(project.environment), CONDA_DEFAULT_ENV='seg'
    )
    assert done.returncode == 0, done.stderr
    assert len(project.pip_calls()) == 2


def test_python_of_the_environment_is_all_that_standard_output_gets(project: Project):
    done = project.set_up('--print-python')
    python = Path(done.stdout.removesuffix('\n'))
    assert python == project.environment / 'bin' / 'python'
    assert project.set_up('--print-python').stdout == done.stdout


def test_second_call_changes_nothing(project: Project):
    project.set_up()
    before = project.pip_calls()
    done = project.set_up()
    assert 'nothing has changed' in done.stderr
    assert project.pip_calls() == before


@pytest.mark.parametrize('name', [n for n in FILES if not n.endswith('.sh')])
def test_changed_file_sets_up_again(project: Project, name: str):
    project.set_up()
    with (project.root / name).open('a') as file:
        file.write('# changed\n')
    project.set_up()
    assert len(project.pip_calls()) == 4


def test_uninstalled_project_sets_up_again(project: Project):
    project.set_up()
    shutil.rmtree(project.site / 'mmseg_twins-0.1.0.dist-info')
    project.set_up()
    assert len(project.pip_calls()) == 4


def test_full_mmcv_is_never_overwritten_by_mmcv_lite(project: Project):
    project.add_distribution('mmcv')
    done = project.set_up()
    assert '-e .[mim,deploy,test]' in project.pip_calls()[0]
    assert 'leaving mmcv-lite out' in done.stderr


def test_full_replaces_mmcv_lite_only_when_the_wheel_is_built(project: Project):
    project.add_distribution('mmcv-lite')
    done = project.set_up('--full')
    assert done.returncode == 0, done.stderr
    install, build, remove, swap, check = project.pip_calls()
    assert '-e .[mim,deploy,test]' in install
    assert build.startswith('wheel')
    assert build.endswith('mmcv')
    assert remove == 'uninstall -y mmcv-lite'
    assert swap.startswith('install')
    assert 'mmcv-2.1.0' in swap
    assert check == 'check'


def test_a_wheel_of_full_mmcv_is_built_once_for_a_torch(project: Project):
    def built() -> bool:
        shutil.rmtree(project.site / 'mmseg_twins-0.1.0.dist-info')
        before = len(project.pip_calls())
        done = project.set_up('--full')
        assert done.returncode == 0, done.stderr
        return any(call.startswith('wheel') for call in project.pip_calls()[before:])

    project.set_up()
    assert built()
    assert not built()
    project.install_torch('2.13.0+cu130')
    assert built()


def test_failed_installation_shows_the_log_and_is_tried_again(project: Project):
    done = project.set_up(PIP_FAILS='1')
    assert done.returncode == 1
    assert 'ERROR: no such index' in done.stderr
    assert 'whole output is in' in done.stderr
    assert project.set_up().returncode == 0
    assert len([call for call in project.pip_calls() if '-e .' in call]) == 2


@pytest.mark.parametrize(
    ('distributions', 'sentence'),
    [
        (['mmcv', 'mmcv-lite'], 'both mmcv and mmcv-lite'),
        (['mmcv-full'], 'mmcv-full, of mmsegmentation 0.x'),
    ],
)
def test_mmcv_that_cannot_be_built_upon_is_refused(
    project: Project, distributions: list[str], sentence: str
):
    for name in distributions:
        project.add_distribution(name)
    done = project.set_up()
    assert done.returncode == 1
    assert sentence in done.stderr
    assert project.pip_calls() == []


def test_opencv_that_does_not_load_names_the_system_packages(project: Project):
    (project.site / 'cv2.py').write_text("raise ImportError('libGL.so.1')\n")
    done = project.set_up()
    assert done.returncode == 1
    assert 'libGL.so.1' in done.stderr
    assert 'apt install libgl1' in done.stderr


def test_environment_of_an_unsupported_python_is_refused(
    project: Project, python_named: Callable[[str], str]
):
    python_named('3.14')
    shutil.rmtree(project.environment)
    (project.environment / 'bin').mkdir(parents=True)
    fake = project.root.parent / 'bin' / 'python3'
    shutil.copy2(fake, project.environment / 'bin' / 'python')
    done = project.set_up()
    assert done.returncode == 1
    assert 'has Python 3.14, but 3.10 to 3.13 is needed' in done.stderr


def test_machine_without_a_supported_python_is_told_what_was_looked_for(
    project: Project, python_named: Callable[[str], str]
):
    done = project.set_up(VIRTUAL_ENV='', PATH=python_named('3.9'))
    assert done.returncode == 1
    assert 'no Python 3.10 to 3.13 found' in done.stderr
    assert 'python3 is 3.9' in done.stderr
    assert not (project.root / '.venv').exists()


@pytest.mark.parametrize('base_of_conda', [False, True])
def test_venv_is_made_where_no_environment_is_active(
    project: Project, tmp_path: Path, base_of_conda: bool
):
    # The Python of this test makes .venv; its pip, a module on the path, is the fake.
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'bin' / 'python3').symlink_to(sys.executable)
    path = f'{tmp_path / "bin"}{os.pathsep}{os.environ["PATH"]}'
    conda = {'CONDA_PREFIX': str(tmp_path), 'CONDA_DEFAULT_ENV': 'base'}
    done = project.set_up(
        '--print-python',
        VIRTUAL_ENV='',
        PATH=path,
        PYTHONPATH=str(project.site),
        **(conda if base_of_conda else {}),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f'{project.root.resolve()}/.venv/bin/python\n'
    assert (project.root / '.venv' / 'pyvenv.cfg').is_file()


def test_unknown_option_names_the_known_ones(project: Project):
    done = project.set_up('--ful')
    assert done.returncode == 1
    assert "'--ful'; allowed are --full, --print-python and --help" in done.stderr
