"""Configs inherit from mmsegmentation, whatever distribution it comes in."""

from __future__ import annotations

from importlib import metadata
from types import SimpleNamespace

import pytest

from mmseg_twins.compat.hook import after_config_utils


@pytest.fixture
def named(monkeypatch):
    """How mmengine knows mmsegmentation where a distribution is installed."""

    def name(distribution: str, **environment: str) -> str:
        def version(name: str) -> str:
            if name != distribution:
                raise metadata.PackageNotFoundError(name)
            return '1.2.2'

        monkeypatch.setattr(metadata, 'version', version)
        for variable, value in environment.items():
            monkeypatch.setenv(variable, value)
        module = SimpleNamespace(MODULE2PACKAGE={'mmseg': 'mmsegmentation'})
        after_config_utils(module)
        return module.MODULE2PACKAGE['mmseg']

    return name


@pytest.mark.parametrize('name', ['mmsegmentation', 'onedl-mmsegmentation'])
def test_mmengine_looks_for_the_installed_distribution(named, name):
    assert named(name) == name


@pytest.mark.parametrize(
    ('setting', 'expected'),
    [
        ('', 'onedl-mmsegmentation'),
        ('1', 'onedl-mmsegmentation'),
        ('ops,configs', 'onedl-mmsegmentation'),
        ('ops', 'mmsegmentation'),
        ('0', 'mmsegmentation'),
    ],
)
def test_the_setting_in_the_environment_chooses(named, setting, expected):
    assert named('onedl-mmsegmentation', MMSEG_TWINS_COMPAT=setting) == expected
