"""The directions of imports, and what belongs in which room."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'mmseg_twins'
# What each room may import of the package, besides itself.
BELOW_ALL = {'errors', 'interrupts', 'registry', 'state_dicts', 'version'}
ALLOWED = {
    'ops': set(),
    'models': {'ops'},
    'checkpoints': {'models', 'ops'},
    'engine': {'checkpoints', 'models', 'ops'},
    'evaluation': {'checkpoints', 'models'},
    'apis': {'checkpoints', 'engine', 'models', 'ops'},
    'cli': {'apis', 'checkpoints', 'compat', 'engine', 'models', 'ops'},
    'compat': {'checkpoints'},
    # Single modules.
    '__init__': {'compat', 'models'},
    '__main__': {'cli'},
    'drop_in': {'models'},
    **{name: set() for name in BELOW_ALL},
}
MODULES = sorted(PACKAGE.rglob('*.py'), key=str)
MODULES = [path for path in MODULES if '.mim' not in path.parts]


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix('').parts
    return parts[0]


def imports_of(path: Path) -> set[str]:
    """Return the absolute names of the modules that a file imports."""
    names = set()
    package = path.relative_to(ROOT).with_suffix('').parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = '.'.join([*base, *([node.module] if node.module else [])])
            names |= {f'{module}.{alias.name}' for alias in node.names}
    return names


@pytest.mark.parametrize(
    'path', MODULES, ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_point_one_way(path: Path):
    room = room_of(path)
    rooms = {
        name.split('.')[1]
        for name in imports_of(path)
        if name.startswith('mmseg_twins.')
    }
    known = {one for one in rooms if one in ALLOWED}
    assert known <= ALLOWED[room] | BELOW_ALL | {room}


def test_the_package_imports_neither_tools_nor_tests():
    outside = {
        path.stem if path.is_file() else path.name
        for folder in ('tools', 'tools/analysis_tools', 'tools/demo', 'tests')
        for path in (ROOT / folder).iterdir()
    } | {'tools', 'tests'}
    outside -= set(sys.stdlib_module_names)
    for path in MODULES:
        assert not {name.split('.')[0] for name in imports_of(path)} & outside, path


@pytest.mark.parametrize('room', ['reading', 'downloading', 'pickles'])
def test_the_reader_can_be_imported_before_mmsegmentation(room: str):
    names = imports_of(PACKAGE / 'checkpoints' / f'{room}.py')
    assert not any('models' in name or name.startswith('mmseg.') for name in names)


@pytest.mark.parametrize(
    'path', sorted((PACKAGE / 'models').rglob('*.py')), ids=lambda path: path.name
)
def test_models_say_what_is_computed_and_not_how(path: Path):
    text = path.read_text(encoding='utf-8')
    assert 'autograd' not in text
    assert '.device' not in text


def test_no_checkpoint_is_loaded_with_all_that_it_asks_for():
    files = subprocess.run(
        ['git', 'ls-files', '*.py'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    for name in files:
        path = ROOT / name
        if path != Path(__file__) and path.exists():
            tree = ast.parse(path.read_text(encoding='utf-8'))
            for node in ast.walk(tree):
                if isinstance(node, ast.keyword) and node.arg == 'weights_only':
                    allowed = isinstance(node.value, ast.Constant) and node.value.value
                    assert allowed, f'{name}:{node.value.lineno}'
