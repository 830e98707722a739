"""mmsegmentation works where nothing has imported the package before it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import mmseg
import pytest

from builders import small_demo
from mmseg_twins.compat import hook
from mmseg_twins.compat.versions import version

lite = pytest.mark.skipif(not version('mmcv-lite'), reason='needs mmcv-lite')
ROOT = Path(__file__).parents[2]
WITHOUT_OPS = "No module named 'mmcv._ext'"
# What Python runs when it starts where the package is installed.
START = 'import mmseg_twins_hook; mmseg_twins_hook.install()\n'


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder for packages with the hook in it, as an installation has it."""
    folder = tmp_path / 'site'
    folder.mkdir()
    shutil.copy2(hook.__file__, folder / 'mmseg_twins_hook.py')
    return folder


@pytest.fixture
def run(site: Path):
    """Runs code in a fresh interpreter, after what Python runs when it starts."""
    path = [str(site), str(ROOT), os.environ.get('PYTHONPATH')]

    def run(code: str, **environment: str) -> subprocess.CompletedProcess:
        environment['PYTHONPATH'] = os.pathsep.join(filter(None, path))
        return subprocess.run(
            [sys.executable, '-c', START + code],
            capture_output=True,
            text=True,
            cwd=site,
            env=os.environ | environment,
            timeout=300,
        )

    return run


def script_of_mmsegmentation(name: str, *arguments: object) -> str:
    """The code that runs one of mmsegmentation's scripts, as mim does."""
    path = Path(mmseg.__file__).parent / '.mim/tools' / name
    command = [str(path), *map(str, arguments)]
    return (
        f'import runpy, sys; sys.argv = {command}\n'
        'runpy.run_path(sys.argv[0], run_name="__main__")\n'
    )


def test_mmsegmentation_is_imported_first_and_silently(run):
    result = run('from mmseg.apis import init_model')
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')


def test_scripts_of_mmsegmentation_read_configs(run):
    config = ROOT / 'configs/demo/twins_svt_fpn_streets.py'
    result = run(script_of_mmsegmentation('misc/print_config.py', config))
    assert result.returncode == 0, result.stderr
    assert "type='mmseg_twins.SVT'" in result.stdout


def test_mmsegmentation_trains_with_a_config_in_pure_python(run, scenes, tmp_path):
    cfg = small_demo(scenes)
    cfg.merge_from_dict({'train_cfg': dict(max_iters=1, val_interval=1)})
    cfg.pop('custom_imports')
    text = cfg.pretty_text.replace("'mmseg_twins.SVT'", 'SVT')
    config = tmp_path / 'config.py'
    config.write_text(f'from mmseg_twins.models.backbones import SVT\n{text}')

    folder = tmp_path / 'run'
    result = run(script_of_mmsegmentation('train.py', config, '--work-dir', folder))

    assert result.returncode == 0, result.stderr
    assert (folder / 'iter_1.pth').is_file()


@lite
@pytest.mark.parametrize(
    'setting', ['0', pytest.param('checkpoints,fsdp', marks=pytest.mark.slow)]
)
def test_without_the_patch_of_ops_mmsegmentation_fails_as_before(run, setting):
    result = run('import mmseg.models', MMSEG_TWINS_COMPAT=setting)
    assert WITHOUT_OPS in result.stderr.splitlines()[-1]


@lite
@pytest.mark.parametrize(
    'state', [pytest.param('broken', marks=pytest.mark.slow), 'gone']
)
def test_without_a_working_package_mmsegmentation_fails_as_before(run, site, state):
    code = 'import mmseg; print("imported"); import mmseg.models'
    if state == 'gone':
        code = f'import sys; sys.modules["mmseg_twins"] = None; {code}'
    else:
        (site / 'mmseg_twins.py').write_text('raise RuntimeError("broken")')

    result = run(code)

    assert result.stdout == 'imported\n'
    assert WITHOUT_OPS in result.stderr.splitlines()[-1]


def test_an_unknown_patch_is_named_when_mmsegmentation_is_imported(run):
    result = run('import mmseg', MMSEG_TWINS_COMPAT='ops,opss')
    assert "there is no patch 'opss'; give some of" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ('importer', 'warnings'), [('mim', 0), ('mmengine', 0), ('other', 1)]
)
def test_pkg_resources_is_deprecated_for_others(run, site, importer, warnings):
    said = 'pkg_resources is deprecated as an API'
    (site / 'pkg_resources.py').write_text(f'import warnings; warnings.warn("{said}")')
    (site / f'{importer}.py').write_text('import pkg_resources')

    result = run(f'import {importer}')

    assert result.returncode == 0, result.stderr
    assert result.stderr.count(f'UserWarning: {said}') == warnings


def test_an_interpreter_loads_nothing_else_when_it_starts(site):
    code = f'import os, sys; before = set(sys.modules)\n{START}'
    result = subprocess.run(
        [sys.executable, '-S', '-c', f'{code}print(set(sys.modules) - before)'],
        capture_output=True,
        text=True,
        cwd=site,
        env={},
    )
    assert result.stdout == "{'mmseg_twins_hook'}\n", result.stderr


class Loader:
    """Notes what it executes."""

    def __init__(self) -> None:
        self.executed: list[str] = []

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        self.executed.append(module.__name__)


@pytest.fixture
def waiting(monkeypatch) -> tuple[hook.Finder, list[str]]:
    """A finder that waits for the module `wanted`, and what has happened."""
    happened = Loader()
    finder = hook.Finder()
    finder.actions = {'wanted': lambda module: happened.executed.append('action')}
    other = SimpleNamespace(
        find_spec=lambda name, *_: (
            ModuleSpec(name, happened) if name == 'wanted' else None
        )
    )
    monkeypatch.setattr(sys, 'meta_path', [hook.Finder(), finder, other])
    monkeypatch.delitem(sys.modules, 'wanted', raising=False)
    yield finder, happened.executed
    sys.modules.pop('wanted', None)


def test_a_module_is_executed_once_before_the_action(waiting):
    import wanted

    del sys.modules['wanted']
    import wanted  # noqa: F401, F811

    assert waiting[1] == ['wanted', 'action', 'wanted']


def test_looking_for_a_module_is_not_importing_it(waiting):
    finder, happened = waiting
    assert finder.find_spec('wanted') is not None
    assert happened == []
    import wanted  # noqa: F401

    assert happened == ['wanted', 'action']


def test_an_action_that_fails_harms_no_import(waiting):
    def fail(module: ModuleType) -> None:
        happened.append('failure')
        raise RuntimeError('broken')

    finder, happened = waiting
    finder.actions['wanted'] = fail
    import wanted  # noqa: F401

    assert happened == ['wanted', 'failure']


def test_installing_it_twice_is_once(monkeypatch):
    monkeypatch.setattr(sys, 'meta_path', [])
    monkeypatch.delenv(hook.SETTING, raising=False)
    hook.install()
    hook.install()
    assert len(sys.meta_path) == 1
