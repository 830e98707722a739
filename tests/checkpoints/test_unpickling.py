"""mmengine's checkpoints load with ``weights_only=True``; others stay refused."""

from __future__ import annotations

import functools
import os
import pickle
import threading
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import CheckpointLoader, load_checkpoint
from safetensors.torch import save_file

import mmseg_twins  # noqa: F401, activates compat


class Attack:
    """A pickle of this creates a folder when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


class StolenAttribute:
    """A pickle of this asks for an attribute that is no statistic."""

    def __init__(self, owner, name: str) -> None:
        self.request = (owner, name)

    def __reduce__(self):
        return getattr, self.request


def load(path: Path):
    return torch.load(path, weights_only=True)


def test_training_curves_load(tmp_path):
    hub = MessageHub.get_instance('checkpoint_test')
    for value in (3.0, 1.0):
        hub.update_scalar('train/loss', value)
    hub.update_scalar('train/mIoU', np.float32(0.5))
    torch.save(dict(message_hub=hub.state_dict()), tmp_path / 'iter_1.pth')
    curves = load(tmp_path / 'iter_1.pth')['message_hub']['log_scalars']
    assert curves['train/loss'].mean() == 2.0
    assert curves['train/loss'].min() == 1.0
    assert isinstance(curves['train/mIoU'], HistoryBuffer)


@pytest.mark.parametrize('dtype', ['float64', 'float32', 'int64', 'bool', 'uint8'])
def test_numpy_arrays_and_scalars_load(tmp_path, dtype):
    array = np.array([0, 1, 1]).astype(dtype)
    torch.save(dict(array=array, scalar=array[1]), tmp_path / 'meta.pth')
    loaded = load(tmp_path / 'meta.pth')
    assert np.array_equal(loaded['array'], array)
    assert loaded['scalar'] == array[1]


def test_code_in_a_checkpoint_is_refused_and_does_not_run(tmp_path):
    torch.save(dict(state_dict={}, meta=Attack(tmp_path / 'owned')), tmp_path / 'a.pth')
    with pytest.raises(pickle.UnpicklingError, match='mkdir'):
        load(tmp_path / 'a.pth')
    assert not (tmp_path / 'owned').exists()


@pytest.mark.parametrize(
    ('owner', 'name'),
    [(HistoryBuffer, '__init__'), (np.ndarray, 'tofile'), (HistoryBuffer, 'update')],
)
def test_getattr_answers_for_statistics_only(tmp_path, owner, name):
    torch.save(StolenAttribute(owner, name), tmp_path / 'a.pth')
    with pytest.raises(pickle.UnpicklingError, match=f'{name}.*refused'):
        load(tmp_path / 'a.pth')


@pytest.fixture
def url_of(monkeypatch, tmp_path):
    """Serves a folder on this machine, with a cache of its own for what is fetched."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('no_proxy', '*')
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with HTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield lambda name: f'http://127.0.0.1:{server.server_address[1]}/{name}'
        server.shutdown()


def test_code_in_a_downloaded_checkpoint_is_refused_and_does_not_run(tmp_path, url_of):
    torch.save(dict(state_dict={}, meta=Attack(tmp_path / 'owned')), tmp_path / 'a.pth')
    with pytest.raises(pickle.UnpicklingError, match='mkdir'):
        CheckpointLoader.load_checkpoint(url_of('a.pth'), map_location='cpu')
    assert not (tmp_path / 'owned').exists()


def test_weights_are_downloaded(tmp_path, url_of):
    source, target = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    torch.save(source.state_dict(), tmp_path / 'a.pth')
    load_checkpoint(target, url_of('a.pth'), map_location='cpu')
    assert torch.equal(target.weight, source.weight)


def test_mmengine_loads_a_safetensors_file(tmp_path):
    source, target = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    save_file(source.state_dict(), tmp_path / 'weights.safetensors')
    load_checkpoint(target, str(tmp_path / 'weights.safetensors'), map_location='cpu')
    assert torch.equal(target.weight, source.weight)
