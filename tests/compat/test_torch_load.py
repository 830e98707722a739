"""No loader of onedl-mmengine runs code in a checkpoint."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
import torch
from mmengine.runner import checkpoint

from mmseg_twins.compat import torch_load
from mmseg_twins.errors import CheckpointError


class Attack:
    """A pickle of this creates a folder when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.fixture(params=['path', 'stream'])
def given(request):
    """What mmengine's loaders give it for a file: its path, or its content."""
    if request.param == 'path':
        return str
    return lambda path: io.BytesIO(path.read_bytes())


@pytest.mark.parametrize('legacy', [False, True])
def test_checkpoints_are_read(given, tmp_path, legacy):
    path, state = tmp_path / 'a.pth', {'a': torch.rand(3)}
    torch.save({'state_dict': state}, path, _use_new_zipfile_serialization=not legacy)
    found = torch_load.load(given(path), map_location='cpu')
    assert torch.equal(found['state_dict']['a'], state['a'])


def test_code_does_not_run_whatever_is_asked_for(given, tmp_path):
    torch.save({'meta': Attack(tmp_path / 'owned')}, tmp_path / 'a.pth')
    unsafe = {'weights_only': bool('')}
    with pytest.raises(CheckpointError, match='mkdir'):
        torch_load.load(given(tmp_path / 'a.pth'), **unsafe)
    assert not (tmp_path / 'owned').exists()


@pytest.mark.parametrize(
    'load', [checkpoint.load_from_local, checkpoint.load_from_openmmlab]
)
def test_loaders_that_are_called_directly_do_not_run_code(load, tmp_path, monkeypatch):
    torch.save({'meta': Attack(tmp_path / 'owned')}, tmp_path / 'a.pth')
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path))
    monkeypatch.setattr(checkpoint, 'get_external_models', lambda: {'a': 'a.pth'})
    name = 'open-mmlab://a' if 'openmmlab' in load.__name__ else tmp_path / 'a.pth'
    with pytest.raises(Exception, match='mkdir'):
        load(str(name), map_location='cpu')
    assert not (tmp_path / 'owned').exists()


def test_a_loader_without_the_fallback_is_left_alone(monkeypatch):
    monkeypatch.delattr(checkpoint, '_safe_torch_load', raising=False)
    torch_load.patch_fallback()
    assert not hasattr(checkpoint, '_safe_torch_load')


def test_the_fallback_is_replaced(monkeypatch):
    monkeypatch.setattr(checkpoint, '_safe_torch_load', None, raising=False)
    torch_load.patch_fallback()
    assert checkpoint._safe_torch_load is torch_load.load
