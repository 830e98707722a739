"""What an installed mmseg_twins carries, asks for, and offers to mim."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
BUILD_INPUTS = (
    'setup.py', 'pyproject.toml', 'MANIFEST.in', '.gitignore', 'README.md', 'LICENSE',
    'CHANGELOG.md', 'model-index.yml', 'mmseg_twins', 'configs', 'tools',
    'requirements',
)  # fmt: skip
MIM_PARTS = ('configs', 'tools', 'model-index.yml')
CHECKOUT_ONLY = {
    'tools/benchmark.py',
    'tools/check_dataset.py',
    'tools/check_versions.py',
    'tools/dataset_converters/street_scenes.py',
}
PYTHONS = ('3.10', '3.11', '3.12', '3.13')


def run(*command: object, cwd: Path, **environment: str) -> str:
    """Runs a command and returns its standard output; a failure fails the test."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build_wheel(source: Path, folder: Path) -> Path:
    run(
        sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation',
        '--no-index', '-w', folder, source, cwd=folder.parent,
    )  # fmt: skip
    (wheel,) = folder.glob('*.whl')
    return wheel


def build_with_backend(hook: str, source: Path, folder: Path) -> Path:
    """Calls a hook of the build backend, as pip does."""
    folder.mkdir()
    code = f'from setuptools import build_meta; build_meta.{hook}({str(folder)!r})'
    run(sys.executable, '-c', code, cwd=source)
    (built,) = folder.iterdir()
    return built


def files_of(source: Path, *parts: str) -> set[str]:
    """Lists the files of parts of the sources, relative to the project's root."""
    paths = {source / part for part in parts}
    paths |= {path for folder in paths for path in folder.rglob('*')}
    names = {path.relative_to(source) for path in paths if path.is_file()}
    return {name.as_posix() for name in names if '.mim' not in name.parts}


@pytest.fixture(scope='module')
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, so that no build touches the checkout."""
    folder = tmp_path_factory.mktemp('packaging') / 'source'
    folder.mkdir()
    for name in BUILD_INPUTS:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns('__pycache__', '.*')
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        else:
            shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope='module')
def wheel(source: Path) -> Path:
    return build_wheel(source, source.parent / 'wheel')


@pytest.fixture(scope='module')
def editable(source: Path) -> Path:
    return build_with_backend('build_editable', source, source.parent / 'editable')


@pytest.fixture(scope='module')
def requirements(wheel: Path) -> list[Requirement]:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith('/METADATA'))
        metadata = message_from_string(archive.read(name).decode())
    return [Requirement(text) for text in metadata.get_all('Requires-Dist')]


def names_of(requirements: list[Requirement], extra: str) -> set[str]:
    return {
        canonicalize_name(requirement.name)
        for requirement in requirements
        if (requirement.marker is None) == (extra == '')
        and (extra == '' or requirement.marker.evaluate({'extra': extra}))
    }


def carried(source: Path) -> set[str]:
    """Return what mim and mmengine look for, without what serves a checkout only."""
    return {
        name
        for name in files_of(source, *MIM_PARTS)
        if not name.startswith('tools/demo/')
        and not name.endswith('.sh')
        and name not in CHECKOUT_ONLY
    }


def test_wheel_carries_the_package_and_what_mim_looks_for(source: Path, wheel: Path):
    expected = files_of(source, 'mmseg_twins')
    expected |= {f'mmseg_twins/.mim/{name}' for name in carried(source)}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if '.dist-info/' not in name}
        assert names == expected
        for name in carried(source):
            content = archive.read(f'mmseg_twins/.mim/{name}')
            assert content == (source / name).read_bytes(), name


def test_version_is_the_packages(source: Path, wheel: Path):
    text = (source / 'mmseg_twins' / 'version.py').read_text()
    (version,) = re.findall(r"__version__ = '(.+)'", text)
    assert wheel.name.split('-')[:2] == ['mmseg_twins', version]


def test_no_base_requirement_chooses_an_mmcv(requirements: list[Requirement]):
    base = names_of(requirements, '')
    assert {'torch', 'mmengine', 'mmsegmentation', 'ftfy', 'regex'} <= base
    assert not {name for name in base if name.startswith('mmcv')}


@pytest.mark.parametrize(
    ('extra', 'names'),
    [
        ('lite', {'mmcv-lite'}),
        ('full', {'mmcv'}),
        ('mim', {'openmim', 'openxlab', 'setuptools'}),
        ('deploy', {'onnx', 'onnxruntime', 'onnxscript'}),
        ('test', {'hypothesis', 'mypy', 'pytest', 'pytest-xdist', 'ruff'}),
    ],
)
def test_extra_asks_for_its_packages(
    requirements: list[Requirement], extra: str, names: set[str]
):
    assert names_of(requirements, extra) == names


def read_pins(name: str, python: str) -> dict[str, list[Requirement]]:
    """The pins of a file of constraints that hold for a Python."""
    pins: dict[str, list[Requirement]] = {}
    for line in (ROOT / 'requirements' / name).read_text().splitlines():
        if line and not line.startswith('#'):
            pin = Requirement(line)
            if pin.marker is None or pin.marker.evaluate({'python_version': python}):
                pins.setdefault(canonicalize_name(pin.name), []).append(pin)
    return pins


@pytest.mark.parametrize('python', PYTHONS)
def test_tested_versions_satisfy_every_requirement(
    requirements: list[Requirement], python: str
):
    pins = read_pins('tested.txt', python)
    assert not [name for name, lines in pins.items() if len(lines) != 1]
    for requirement in requirements:
        (pin,) = pins[canonicalize_name(requirement.name)]
        (clause,) = pin.specifier
        assert clause.operator == '=='
        assert requirement.specifier.contains(clause.version), str(requirement)


def test_oldest_versions_are_the_lower_bounds(requirements: list[Requirement]):
    lower = {
        (canonicalize_name(requirement.name), Version(clause.version))
        for requirement in requirements
        for clause in requirement.specifier
        if clause.operator == '>='
    }
    pins = read_pins('oldest.txt', '3.10')
    assert lower == {
        (name, Version(clause.version))
        for name, (pin,) in pins.items()
        for clause in pin.specifier
    }


def test_wheel_leaves_out_what_an_earlier_build_left_behind(
    source: Path, wheel: Path, tmp_path: Path
):
    stale = source / 'build' / 'lib' / 'mmseg_twins' / 'gone.py'
    stale.parent.mkdir(parents=True, exist_ok=True)
    stale.write_text('')
    with zipfile.ZipFile(build_wheel(source, tmp_path / 'wheel')) as archive:
        assert 'mmseg_twins/gone.py' not in archive.namelist()


@pytest.mark.skipif(shutil.which('git') is None, reason='needs git')
def test_builds_leave_nothing_that_git_sees(source: Path, wheel: Path, editable: Path):
    run('git', 'init', '-q', cwd=source)
    seen = run('git', 'ls-files', '--others', '--exclude-standard', cwd=source)
    assert set(seen.splitlines()) == files_of(source, *BUILD_INPUTS)


@pytest.mark.parametrize('kind', ['wheel', 'editable'])
def test_mim_finds_recipes_scripts_and_index(
    request: pytest.FixtureRequest, source: Path, tmp_path: Path, kind: str
):
    pytest.importorskip('mim')
    with zipfile.ZipFile(request.getfixturevalue(kind)) as archive:
        archive.extractall(tmp_path)
    code = (
        'import json\n'
        'from mim.commands.search import get_model_info\n'
        'from mim.utils import get_installed_path\n'
        'models = get_model_info("mmseg_twins", to_dict=True)\n'
        'print(json.dumps([get_installed_path("mmseg_twins"), models]))\n'
    )
    printed = run(sys.executable, '-c', code, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    installed, models = json.loads(printed.splitlines()[-1])
    home = tmp_path if kind == 'wheel' else source
    assert Path(installed).resolve() == (home / 'mmseg_twins').resolve()
    assert Path(installed, '.mim', 'tools', 'train.py').is_file()
    recipes = {
        Path(name).name
        for name in files_of(source, 'configs')
        if Path(name).parent == Path('configs') and name.endswith('.py')
    }
    assert {Path(model['config']).name for model in models.values()} == recipes
    for model in models.values():
        assert Path(installed, '.mim', model['config']).is_file()
