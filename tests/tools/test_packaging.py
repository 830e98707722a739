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
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from mmseg_twins.compat.versions import version

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ('mmseg_twins', 'configs', 'tools')
FILES = (
    'setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE', 'CHANGELOG.md',
    'model-index.yml',
)  # fmt: skip
HOOK = {'mmseg_twins_hook.py', 'mmseg_twins_hook.pth'}


def run(*command: object, cwd: Path, **environment: str) -> str:
    """Run a command and return its standard output; a failure fails the test."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(hook: str, source: Path) -> Path:
    """Call a hook of the build backend, as pip does."""
    folder = source.parent / hook
    folder.mkdir()
    code = f'from setuptools import build_meta; build_meta.{hook}({str(folder)!r})'
    run(sys.executable, '-c', code, cwd=source)
    (built,) = folder.iterdir()
    return built


def files_of(source: Path, *folders: str) -> set[str]:
    """List the files of folders, relative to the project's root."""
    paths = (path for folder in folders for path in (source / folder).rglob('*'))
    names = {path.relative_to(source) for path in paths if path.is_file()}
    return {name.as_posix() for name in names if '.mim' not in name.parts}


@pytest.fixture(scope='module')
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, so that no build touches the checkout."""
    folder = tmp_path_factory.mktemp('packaging') / 'source'
    ignore = shutil.ignore_patterns('__pycache__', '.*')
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in FILES:
        shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope='module')
def wheel(source: Path) -> Path:
    stale = source / 'build' / 'lib' / 'mmseg_twins' / 'gone.py'  # of an earlier build
    stale.parent.mkdir(parents=True)
    stale.write_text('')
    return build('build_wheel', source)


@pytest.fixture(scope='module')
def editable(source: Path) -> Path:
    return build('build_editable', source)


@pytest.fixture(scope='module')
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith('/METADATA'))
        return message_from_string(archive.read(name).decode())


@pytest.fixture(scope='module')
def requirements(metadata: Message) -> list[Requirement]:
    return [Requirement(text) for text in metadata.get_all('Requires-Dist')]


def test_the_page_of_the_package_has_no_links_that_lead_nowhere(metadata: Message):
    page = metadata.get_payload()
    links = re.findall(r'\]\(([^)]*)\)', page)
    assert links
    assert all(link.startswith('https://') for link in links)
    local = re.findall(
        r'(?<!!)\[([^]]+)\]\((?!https:)', (ROOT / 'README.md').read_text('utf-8')
    )
    assert local
    assert all(text in page for text in local)


def test_wheel_carries_the_package_and_what_mim_looks_for(source: Path, wheel: Path):
    checkout_only = {
        'tools/benchmark.py',
        'tools/check_dataset.py',
        'tools/check_versions.py',
        'tools/dataset_converters/street_scenes.py',
        *files_of(source, 'tools/demo'),
    }
    carried = files_of(source, 'configs', 'tools') - checkout_only
    carried = {name for name in carried if not name.endswith('.sh')}
    expected = {f'mmseg_twins/.mim/{name}' for name in carried | {'model-index.yml'}}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if '.dist-info/' not in name}
    assert names == expected | files_of(source, 'mmseg_twins') | HOOK


@pytest.mark.parametrize('kind', ['wheel', 'editable'])
def test_what_python_runs_when_it_starts_is_installed_and_removed_with_the_package(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
):
    with zipfile.ZipFile(request.getfixturevalue(kind)) as archive:
        archive.extractall(tmp_path)
    (record,) = tmp_path.glob('*.dist-info/RECORD')
    assert {line.split(',')[0] for line in record.read_text().splitlines()} >= HOOK
    code = (
        f'import site, sys; site.addsitedir({str(tmp_path)!r})\n'
        'print(type(sys.meta_path[0]).__module__)'
    )
    printed = run(sys.executable, '-S', '-c', code, cwd=tmp_path, MMSEG_TWINS_COMPAT='')
    assert printed == 'mmseg_twins_hook\n'


# onedl-mim 0.5.1 takes the folder of the first file that RECORD lists.
@pytest.mark.skipif(bool(version('onedl-mim')), reason='needs openmim')
@pytest.mark.parametrize('kind', ['wheel', 'editable'])
def test_mim_finds_configs_scripts_and_index(
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
    configs = {f'configs/{path.name}' for path in (source / 'configs').glob('*.py')}
    assert {model['config'] for model in models.values()} == configs
    assert all(Path(installed, '.mim', config).is_file() for config in configs)


def test_no_base_requirement_chooses_a_stack(requirements: list[Requirement]):
    base = {canonicalize_name(one.name) for one in requirements if one.marker is None}
    assert {'torch', 'ftfy', 'regex'} <= base
    assert not {name for name in base if 'mm' in name}


def of_stack(requirements: list[Requirement], name: str) -> list[Requirement]:
    """Return what an installation on a stack requires, with all other extras."""
    others = {'onedl': ('lite', 'full', 'mim'), 'openmmlab': ('onedl',)}[name]
    return [
        one
        for one in requirements
        if not any(str(one.marker) == f'extra == "{extra}"' for extra in others)
    ]


def read_pins(name: str, python: str) -> list[tuple[str, str]]:
    """Return names and versions of the pins that hold for a Python."""
    lines = (ROOT / 'requirements' / name).read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith('#')]
    return [
        (canonicalize_name(pin.name), str(pin.specifier).removeprefix('=='))
        for pin in pins
        if pin.marker is None or pin.marker.evaluate({'python_version': python})
    ]


@pytest.mark.parametrize('python', ['3.10', '3.11', '3.12', '3.13'])
@pytest.mark.parametrize(
    ('stack', 'file'), [('openmmlab', 'tested.txt'), ('onedl', 'tested-onedl.txt')]
)
def test_tested_versions_satisfy_every_requirement(
    requirements: list[Requirement], stack: str, file: str, python: str
):
    pins = read_pins(file, python)
    versions = dict(pins)
    assert len(versions) == len(pins)
    for requirement in of_stack(requirements, stack):
        pinned = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pinned), str(requirement)


def test_oldest_versions_are_the_lower_bounds(requirements: list[Requirement]):
    lower = {
        (canonicalize_name(requirement.name), Version(clause.version))
        for requirement in of_stack(requirements, 'openmmlab')
        for clause in requirement.specifier
        if clause.operator == '>='
    }
    pins = read_pins('oldest.txt', '3.10')
    assert lower == {(name, Version(pinned)) for name, pinned in pins}
