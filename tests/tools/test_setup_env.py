"""What tools/setup_env.sh and the scripts that begin with it do to environments.

pip is the real one. What it installs are empty wheels in a folder, for a project of the
same name whose requirements are small enough to state here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import venv
from importlib.metadata import distributions
from pathlib import Path
from zipfile import ZipFile

import pip
import pytest

ROOT = Path(__file__).resolve().parents[2]
PIP = Path(pip.__file__).parent

EXTRAS = {
    'lite': 'mmcv-lite', 'full': 'mmcv', 'onedl': 'onedl-mmcv',
    'mim': 'openmim', 'deploy': 'onnx', 'test': 'pytest',
}  # fmt: skip
REQUIRES = ['torch>=2.7', 'numpy', 'setuptools<82']
REQUIRES += [f"{name}; extra == '{extra}'" for extra, name in EXTRAS.items()]
WHEELS = {
    'torch-2.6': [], 'torch-2.13': [], 'torch-2.14': [],
    'torchvision-0.21': ['torch==2.6'],
    'numpy-1.26': [], 'numpy-2.4': [], 'numpy-2.5': [],
    'onnx-1.22': [], 'onnx-1.23': ['numpy>=2'],
    'mmcv-2.1': [], 'mmcv_lite-2.1': [], 'openmim-0.3': [], 'pytest-9.2': [],
    'onedl_mmcv-2.3': [], 'onedl_mmcv-2.4': [],
    'setuptools-81.0': [], 'setuptools-84.2': [], 'builder-1.0': ['setuptools>=82'],
}  # fmt: skip
PYPROJECT = """
[build-system]
requires = []
build-backend = 'backend'
backend-path = ['.']
"""
BACKEND = """
def build_editable(folder, *_):
    return __import__('shutil').copy('mmseg_twins-0.1-py3-none-any.whl', folder)
"""
FILES = {
    'setup.py': '',
    'backend.py': BACKEND,
    'pyproject.toml': PYPROJECT,
    'mmseg_twins/version.py': '',
    'mmseg_twins/compat/hook.py': '',
    'mmseg_twins/compat/stacks.py': '',
    'mmseg_twins/.mim/model-index.yml': '',
    'mmseg_twins.egg-info/PKG-INFO': 'Metadata-Version: 2.1\nName: mmseg_twins\n',
    'requirements/tested.txt': 'torch==2.13\nnumpy==2.4\n',
    'requirements/tested-onedl.txt': 'torch==2.13\nnumpy==2.4\nonedl-mmcv==2.3\n',
    'tools/demo/quickstart.py': 'import sys; print(sys.prefix, *sys.argv[1:])',
    'modules/cv2.py': '',
    'modules/yapf.py': '',
    'modules/pytest.py': 'import sys; print(sys.prefix, *sys.argv[1:])',
}  # fmt: skip
BOTH = {'torch': '2.13', 'numpy': '2.4', 'onnx': '1.23', 'pytest': '9.2'}
BOTH |= {'mmseg-twins': '0.1'}
DEFAULT = BOTH | {'mmcv-lite': '2.1', 'openmim': '0.3'}


def make_wheel(folder: Path, release: str, requires: list[str]) -> None:
    name, version = release.split('-')
    metadata = ['Metadata-Version: 2.1', f'Name: {name}', f'Version: {version}']
    metadata += [f'Provides-Extra: {extra}' for extra in EXTRAS]
    metadata += [f'Requires-Dist: {text}' for text in requires]
    with ZipFile(folder / f'{release}-py3-none-any.whl', 'w') as wheel:
        wheel.writestr(f'{release}.dist-info/METADATA', '\n'.join(metadata))
        wheel.writestr(f'{release}.dist-info/WHEEL', 'Wheel-Version: 1.0\n')
        wheel.writestr(f'{release}.dist-info/RECORD', '')


class Project:
    """A small project with the real scripts, and environments to run them on."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / 'project'
        for name, text in FILES.items():
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_text(text)
        for script in ('setup_env', 'quickstart', 'run_tests'):
            shutil.copy2(ROOT / f'tools/{script}.sh', self.root / 'tools')
        make_wheel(self.root, 'mmseg_twins-0.1', REQUIRES)
        (folder / 'wheels').mkdir()
        for release, requires in WHEELS.items():
            make_wheel(folder / 'wheels', release, requires)
        self.variables = {
            'PATH': os.environ['PATH'],
            'HOME': str(folder),
            'PIP_CONFIG_FILE': os.devnull,
            'PIP_FIND_LINKS': str(folder / 'wheels'),
            'PIP_NO_INDEX': '1',
            'PYTHONPATH': str(self.root / 'modules'),
        }

    def make_environment(self, name: str, *releases: str) -> Path:
        """Makes an environment with pip in it, faster than `python -m venv` does."""
        environment = self.root / name
        venv.create(environment)
        (site,) = environment.glob('lib/python*/site-packages')
        (site / 'pip').symlink_to(PIP)
        info = f'pip-{pip.__version__}.dist-info'
        (site / info).symlink_to(PIP.parent / info)
        if releases:
            subprocess.run(
                [environment / 'bin/python', '-m', 'pip', 'install', '-q', *releases],
                env=self.variables,
                check=True,
            )
        return environment

    def set_up(self, options: str = '', script: str = 'setup_env', **variables: str):
        """Runs a script from another folder."""
        return subprocess.run(
            ['bash', str(self.root / f'tools/{script}.sh'), *options.split()],
            cwd=self.root.parent,
            env=self.variables | variables,
            capture_output=True,
            text=True,
        )


def installed(environment: Path) -> dict[str, str]:
    """Lists the packages of an environment but pip and setuptools, with versions."""
    (site,) = environment.glob('lib/python*/site-packages')
    return {
        package.metadata['Name'].replace('_', '-'): package.version
        for package in distributions(path=[str(site)])
        if package.metadata['Name'] not in ('pip', 'setuptools')
    }


def assert_fails(done: subprocess.CompletedProcess, sentence: str) -> None:
    assert done.returncode == 1
    last_line = done.stderr.splitlines()[-1]
    assert last_line.startswith('[setup] error: ')
    assert sentence in last_line


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_an_active_environment_is_left_alone(project: Project):
    active = project.make_environment('active', 'torch==2.6')
    variables = {'VIRTUAL_ENV': str(active), 'CONDA_PREFIX': str(active)}
    done = project.set_up('--print-python', **variables)
    environment = project.root.resolve() / '.venv'
    assert done.stdout == f'{environment}/bin/python\n', done.stderr
    assert installed(environment) == DEFAULT
    assert installed(active) == {'torch': '2.6'}


def test_onedl_stack_has_an_environment_and_versions_of_its_own(project: Project):
    environment = project.make_environment('.venv-onedl')
    done = project.set_up('--stack onedl')
    assert done.returncode == 0, done.stderr
    assert installed(environment) == BOTH | {'onedl-mmcv': '2.3'}
    assert not (project.root / '.venv').exists()


@pytest.mark.slow
def test_active_environment_keeps_its_versions(project: Project):
    # The newest onnx would need another numpy.
    active = project.make_environment('active', 'torch==2.13', 'numpy==1.26')
    done = project.set_up('--active', VIRTUAL_ENV=str(active))
    assert done.returncode == 0, done.stderr
    assert installed(active) == DEFAULT | {'numpy': '1.26', 'onnx': '1.22'}
    assert not (project.root / '.venv').exists()


@pytest.mark.slow
def test_a_package_is_replaced_in_an_active_environment_with_yes_only(project: Project):
    active = project.make_environment('active', 'torchvision', 'numpy==2.4')
    before = installed(active)
    done = project.set_up('--active', VIRTUAL_ENV=str(active))
    assert_fails(
        done, 'would replace torch 2.6 with 2.14 (mmseg_twins needs torch>=2.7)'
    )
    assert '--yes' in done.stderr.splitlines()[-1]
    assert 'Would no longer fit: torchvision needs torch==2.6' in done.stderr
    assert installed(active) == before
    done = project.set_up('--active --yes', VIRTUAL_ENV=str(active))
    assert done.returncode == 0, done.stderr
    assert installed(active) == DEFAULT | {'torch': '2.14', 'torchvision': '0.21'}


@pytest.mark.slow
@pytest.mark.parametrize('other', ['torch', 'builder'])
def test_setuptools_is_replaced_without_yes_unless_it_is_needed(project, other):
    active = project.make_environment('active', 'setuptools==84.2', other)
    done = project.set_up('--active', VIRTUAL_ENV=str(active))
    if other == 'builder':
        assert_fails(done, 'would replace setuptools 84.2 with 81.0')
        assert 'no longer fit: builder needs setuptools>=82' in done.stderr
    else:
        assert done.returncode == 0, done.stderr
    (site,) = active.glob('lib/python*/site-packages')
    version = '84.2' if other == 'builder' else '81.0'
    assert (site / f'setuptools-{version}.dist-info').exists()


@pytest.mark.parametrize(
    ('script', 'options', 'name'),
    [
        ('quickstart', '--active', 'active'),
        ('run_tests', '--stack onedl', '.venv-onedl'),
    ],
)
def test_scripts_pass_the_choice_of_an_environment_on(project, script, options, name):
    environment = project.make_environment(name)
    done = project.set_up(f'{options} --seed 1', script, VIRTUAL_ENV=str(environment))
    assert done.stdout.startswith(str(environment)), done.stderr
    assert done.stdout.endswith(' --seed 1\n')


def test_a_set_up_is_repeated_only_after_a_change(project: Project):
    environment = project.make_environment('.venv')
    assert 'Done in' in project.set_up().stderr
    first = project.set_up('--print-python')
    assert 'nothing has changed' in first.stderr
    assert first.stdout == f'{environment}/bin/python\n'
    (project.root / 'requirements/tested.txt').write_text('torch==2.14\n')
    assert 'Done in' in project.set_up().stderr
    assert installed(environment) == DEFAULT | {'torch': '2.14'}
    (info,) = environment.glob('lib/python*/site-packages/mmseg_twins-*.dist-info')
    shutil.rmtree(info)
    assert 'Done in' in project.set_up().stderr


def test_a_failed_set_up_says_why_and_is_tried_again(project: Project):
    environment = project.make_environment('.venv')
    assert_fails(project.set_up(PIP_FIND_LINKS=''), "'pip install' has failed")
    cv2 = project.root / 'modules/cv2.py'
    cv2.write_text("raise ImportError('libGL.so.1')\n")
    assert_fails(project.set_up(), 'apt install libgl1')
    cv2.write_text('')
    assert 'Done in' in project.set_up().stderr
    assert installed(environment) == DEFAULT


@pytest.mark.slow
def test_full_replaces_mmcv_lite_which_never_comes_back(project: Project):
    environment = project.make_environment('.venv')
    for options, message in (('', 'Done'), ('--full', 'Done'), ('', 'Ready')):
        assert message in project.set_up(options).stderr
    (project.root / 'setup.py').write_text('# changed')
    assert 'Done' in project.set_up().stderr
    assert {'mmcv', 'mmcv-lite'} & installed(environment).keys() == {'mmcv'}


@pytest.mark.parametrize(
    ('stack', 'releases', 'sentence'),
    [
        ('openmmlab', ['onedl-mmcv'], 'holds onedl-mmcv'),
        ('openmmlab', ['mmcv', 'mmcv-lite'], 'both mmcv and mmcv-lite'),
        ('onedl', ['mmcv-lite'], 'holds mmcv-lite'),
    ],
)
def test_packages_that_share_files_are_refused(project, stack, releases, sentence):
    active = project.make_environment('active', *releases)
    before = installed(active)
    done = project.set_up(f'--active --stack {stack}', VIRTUAL_ENV=str(active))
    assert_fails(done, sentence)
    assert installed(active) == before


def test_unsupported_pythons_are_named(project: Project, tmp_path: Path):
    (tmp_path / 'bin').mkdir()
    for name in ('python', 'python3', *(f'python3.{minor}' for minor in range(10, 14))):
        (tmp_path / 'bin' / name).write_text('#!/bin/sh\necho 3.9\n')
        (tmp_path / 'bin' / name).chmod(0o755)
    done = project.set_up(PATH=f'{tmp_path / "bin"}{os.pathsep}{os.environ["PATH"]}')
    assert_fails(done, 'no Python 3.10 to 3.13')
    assert 'python3 is 3.9' in done.stderr
    assert not (project.root / '.venv').exists()
    assert_fails(
        project.set_up('--active', VIRTUAL_ENV=str(tmp_path)), 'has Python 3.9'
    )


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        ('--ful', "'--ful'; allowed are --stack, --full, --active, --yes"),
        ('--stack onedll', "'onedll'; allowed are openmmlab (the default) and onedl"),
        ('--full --stack onedl', 'leave out --full or --stack onedl'),
        ('--active', "conda's base environment is active"),
    ],
)
def test_options_that_do_not_work_end_in_one_sentence(project, options, sentence):
    conda = {'CONDA_PREFIX': '/opt/conda', 'CONDA_DEFAULT_ENV': 'base'}
    done = project.set_up(options, **conda)
    assert_fails(done, sentence)
    assert len(done.stderr.splitlines()) == 1


def test_help_comes_before_any_set_up(project: Project):
    done = project.set_up('--help', PATH=os.path.dirname(shutil.which('bash')))
    assert done.stdout.startswith('Usage: bash tools/setup_env.sh')
    assert done.stderr == ''
