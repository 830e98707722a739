"""The stand-in for ``mmcv.ops``, and that it stays away from real ops."""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
from types import ModuleType

import pytest
import torch

from mmseg_twins.compat import PATCHES, activate, ops
from mmseg_twins.errors import SettingError

lite = pytest.mark.skipif(ops.has_compiled_ops(), reason='full mmcv is installed')


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs code in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=120,
    )


@pytest.mark.parametrize('module', ['mmseg.models', 'mmseg.apis', 'mmseg.utils'])
def test_mmsegmentation_can_be_imported(module):
    assert importlib.import_module(module)


@lite
def test_point_sample_works():
    grid = torch.tensor([[[0.25, 0.75]]])
    points = sys.modules['mmcv.ops'].point_sample(
        torch.arange(4.0).view(1, 1, 2, 2), grid
    )
    assert points.item() == 2.0


@lite
def test_a_compiled_op_is_a_missing_module_that_names_full_mmcv():
    with pytest.raises(ModuleNotFoundError, match='RoIAlign.*full mmcv'):
        from mmcv.ops import RoIAlign  # noqa: F401


@lite
@pytest.mark.parametrize('module', ['nms', 'roi_align'])
def test_a_module_of_compiled_ops_names_full_mmcv(module):
    with pytest.raises(ModuleNotFoundError, match=f'{module}.* full mmcv'):
        importlib.import_module(f'mmcv.ops.{module}')


@lite
def test_focal_loss_says_what_it_needs_when_it_is_called():
    from mmcv.ops import sigmoid_focal_loss

    with pytest.raises(ModuleNotFoundError, match='sigmoid_focal_loss.*full mmcv'):
        sigmoid_focal_loss(torch.zeros(1), torch.zeros(1))


@lite
def test_mmengine_still_sees_that_mmcv_has_no_ops():
    from mmengine.utils import is_installed
    from mmengine.utils.dl_utils.misc import mmcv_full_available

    assert is_installed('mmcv')
    assert not mmcv_full_available()


def test_full_mmcvs_ops_are_left_alone(monkeypatch):
    monkeypatch.setattr(ops, 'has_compiled_ops', lambda: True)
    monkeypatch.delitem(sys.modules, 'mmcv.ops', raising=False)
    ops.install_stand_in()
    assert not isinstance(sys.modules.get('mmcv.ops'), ops.StandIn)


def test_ops_that_are_imported_already_are_left_alone(monkeypatch):
    mine = ModuleType('mmcv.ops')
    monkeypatch.setitem(sys.modules, 'mmcv.ops', mine)
    ops.install_stand_in()
    assert sys.modules['mmcv.ops'] is mine


def test_activating_again_changes_nothing():
    before = (
        sys.modules['mmcv.ops'] if not ops.has_compiled_ops() else None,
        list(torch.serialization.get_safe_globals()),
    )
    assert activate()
    assert activate()
    assert torch.serialization.get_safe_globals() == before[1]
    assert before[0] is None or sys.modules['mmcv.ops'] is before[0]


def test_importing_the_package_prints_nothing():
    result = run('import mmseg_twins, mmseg.apis')
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')


@pytest.mark.parametrize(
    ('setting', 'applied'), [('1', set(PATCHES)), ('fsdp,ops', {'fsdp', 'ops'})]
)
def test_the_environment_chooses_the_patches(monkeypatch, setting, applied):
    done = set()
    for name, function in PATCHES.items():
        module = importlib.import_module(f'mmseg_twins.compat.{name}')
        monkeypatch.setattr(module, function, functools.partial(done.add, name))
    monkeypatch.setenv('MMSEG_TWINS_COMPAT', setting)

    assert activate.__wrapped__()

    assert done == applied


def test_an_unknown_patch_is_named_with_those_to_choose_from(monkeypatch):
    monkeypatch.setenv('MMSEG_TWINS_COMPAT', 'fsdp,opss')
    with pytest.raises(SettingError, match="no patch 'opss'; give .*ops, check"):
        activate.__wrapped__()


def test_what_the_patches_do_is_logged_at_level_debug():
    result = run(
        'import logging\n'
        'logging.basicConfig()\n'
        'logging.getLogger("mmseg_twins.compat").setLevel("DEBUG")\n'
        'import mmseg_twins\n',
        MMSEG_TWINS_COMPAT='cpu_processes,fsdp',
    )
    lines = [line.split(':') for line in result.stderr.splitlines()]
    patches = [line[2] for line in lines if line[:2] == ['DEBUG', 'mmseg_twins.compat']]
    assert patches == ['cpu_processes', 'fsdp']


def test_the_environment_switches_compat_off():
    result = run(
        'import sys, torch, mmseg_twins\n'
        'assert not mmseg_twins.compat.activate()\n'
        'from mmseg_twins.compat.ops import StandIn\n'
        'assert not isinstance(sys.modules.get("mmcv.ops"), StandIn)\n'
        'from mmengine.logging import HistoryBuffer\n'
        'assert HistoryBuffer not in torch.serialization.get_safe_globals()\n'
        'from mmengine.runner import Runner\n'
        'assert Runner.wrap_model.__module__ == "mmengine.runner.runner"\n'
        'assert not hasattr(Runner.wrap_model, "__wrapped__")\n'
        'from mmengine._strategy import FSDPStrategy\n'
        'assert not hasattr(FSDPStrategy._wrap_model, "__wrapped__")\n',
        MMSEG_TWINS_COMPAT='0',
    )
    assert result.returncode == 0, result.stderr
