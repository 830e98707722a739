"""``tools/check_versions.py`` names every package that is not as it is pinned."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from packaging.requirements import Requirement

SCRIPT = Path(__file__).resolve().parents[2] / 'tools' / 'check_versions.py'
SPEC = importlib.util.spec_from_file_location('check_versions', SCRIPT)
check_versions = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check_versions)


class Package:
    """As much of an installed package as is looked at."""

    def __init__(self, version: str, *requires: str) -> None:
        self.version = version
        self.requires = requires or None


INSTALLED = {
    'mmseg-twins': Package(
        '1', 'torch>=2', 'pip', 'absent; python_version < "3"', 'Tool[fast]; extra=="x"'
    ),
    'torch': Package('2.1+cpu', 'numpy', 'mmseg-twins'),
    'numpy': Package('3'),
    'tool': Package('4', 'speed; extra == "fast"', 'gone; extra == "slow"'),
    'speed': Package('5', 'numpy'),
    'other': Package('6'),
}
VERSIONS = {name: package.version for name, package in INSTALLED.items()}


def pins(*lines: str) -> dict[str, Requirement]:
    return {pin.name: pin for pin in map(Requirement, lines)}


def test_what_is_needed_is_found_through_requirements_extras_and_markers():
    plain = check_versions.closure('mmseg-twins', [], INSTALLED)
    assert plain == {'torch': 'mmseg-twins', 'pip': 'mmseg-twins', 'numpy': 'torch'}
    with_extra = check_versions.closure('mmseg-twins', ['x'], INSTALLED)
    assert with_extra == plain | {'tool': 'mmseg-twins', 'speed': 'tool'}


def test_versions_as_pinned_are_no_problem():
    askers = {'torch': 'mmseg-twins', 'numpy': 'torch'}
    assert not check_versions.compare(
        askers, pins('torch==2.1', 'numpy==3', 'unused==1'), VERSIONS
    )


def test_what_differs_is_named():
    askers = {'torch': 'mmseg-twins', 'numpy': 'torch', 'missing': 'numpy'}
    problems = check_versions.compare(askers, pins('torch==2.2'), VERSIONS)
    assert problems == [
        'missing is not installed, and numpy asks for it',
        'numpy has no pin, and torch asks for it: 3 is installed',
        'torch is installed in version 2.1+cpu, pinned is 2.2',
    ]


def test_pins_are_those_for_this_python(tmp_path):
    path = tmp_path / 'pins.txt'
    path.write_text(
        '# comment\n\nA_b==1 ; python_version < "3"\na-B==2 ; python_version >= "3"\n'
    )
    assert str(check_versions.read_pins(path)['a-b'].specifier) == '==2'


@pytest.mark.parametrize(
    ('line', 'problem'),
    [('a>=1', 'no NAME==VERSION'), ('a == = 1', 'is no pin'), ('b==1', 'has two pins')],
)
def test_lines_that_pin_nothing_are_told_with_their_number(line, problem, tmp_path):
    path = tmp_path / 'pins.txt'
    path.write_text(f'B==1\n{line}\n')
    with pytest.raises(ValueError, match=f'pins.txt:2: .*{problem}'):
        check_versions.read_pins(path)


def test_packages_that_nothing_asks_for_are_named(capsys, monkeypatch):
    installed = check_versions.installed_packages()
    monkeypatch.setattr(
        check_versions,
        'installed_packages',
        lambda: installed | {'stranger': Package('7')},
    )
    check_versions.main([])
    assert 'stranger 7' in capsys.readouterr().out


def test_a_difference_is_the_exit_status(tmp_path, capsys):
    path = tmp_path / 'pins.txt'
    path.write_text(f'{check_versions.PINS.read_text()}\n')
    text = path.read_text().replace('mmengine==', 'mmengine==9.')
    path.write_text(text)
    assert check_versions.main(['--pins', str(path)]) == 1
    assert 'mmengine is installed in version' in capsys.readouterr().err


def test_an_unknown_extra_is_one_sentence(capsys):
    with pytest.raises(SystemExit) as stopped:
        check_versions.main(['--extras', 'lite,nonsense'])
    assert stopped.value.code == 2
    assert "no extra 'nonsense'; it has" in capsys.readouterr().err
