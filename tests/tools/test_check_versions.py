"""``tools/check_versions.py`` names every package that is not as it is pinned."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / 'tools' / 'check_versions.py'
SPEC = importlib.util.spec_from_file_location('check_versions', SCRIPT)
check_versions = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check_versions)


class Package:
    """As much of an installed package as is looked at."""

    def __init__(self, version: str, *requires: str) -> None:
        self.version, self.requires = version, requires


def test_what_is_needed_is_found_through_requirements_extras_and_markers():
    installed = {
        'mmseg-twins': Package(
            '1', 'torch', 'pip', 'old; python_version < "3"', 'Tool[fast]; extra=="x"'
        ),
        'torch': Package('2', 'numpy', 'mmseg-twins'),
        'tool': Package('4', 'speed; extra == "fast"', 'gone; extra == "slow"'),
        'other': Package('6'),
    }
    needed = check_versions.needed_packages
    assert needed(installed, []) == {'torch', 'numpy'}
    assert needed(installed, ['x']) == {'torch', 'numpy', 'tool', 'speed'}


@pytest.mark.parametrize(
    ('name', 'extras', 'file'),
    [
        ('mmcv-lite', 'lite,mim', 'tested.txt'),
        ('mmcv', 'full,mim', 'tested.txt'),
        ('onedl-mmengine', 'onedl', 'tested-onedl.txt'),
    ],
)
def test_each_stack_has_its_extras_and_pins(name, extras, file):
    found, pins = check_versions.installed_stack({name: Package('1')})
    assert (found, pins.name) == (extras, file)
    assert pins.is_file()


@pytest.mark.parametrize(
    ('pin', 'other', 'problem'),
    [
        ('mmengine==', 'mmengine==9.', 'is pinned, 0.'),
        ('mmengine==', 'mmengin==', 'has no pin'),
        ('mmengine==', 'mmengine==0.1; python_version < "3" #', 'has no pin'),
    ],
)
def test_a_difference_is_named_and_is_the_exit_status(
    pin, other, problem, tmp_path, capsys
):
    path = tmp_path / 'pins.txt'
    installed = check_versions.installed_packages()
    _, tested = check_versions.installed_stack(installed)
    path.write_text(tested.read_text().replace(pin, other))
    assert check_versions.main(['--pins', str(path)]) == 1
    (line,) = (one for one in capsys.readouterr().err.splitlines() if 'mmengine' in one)
    assert problem in line


def test_a_missing_package_is_named(monkeypatch, capsys):
    installed = check_versions.installed_packages()
    del installed['filelock']
    monkeypatch.setattr(check_versions, 'installed_packages', lambda: installed)
    assert check_versions.main([]) == 1
    assert 'is pinned, nothing installed' in capsys.readouterr().err


def test_an_unknown_extra_is_one_sentence(capsys):
    with pytest.raises(SystemExit) as stopped:
        check_versions.main(['--extras', 'lite,nonsense'])
    assert stopped.value.code == 2
    assert "no extra 'nonsense'; choose from" in capsys.readouterr().err
