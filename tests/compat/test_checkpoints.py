"""mmengine loads checkpoints with the package's reader."""

from __future__ import annotations

import functools
import os
import threading
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest
import torch
from mmengine.runner import CheckpointLoader, load_checkpoint
from safetensors.torch import save_file

from mmseg_twins.errors import CheckpointError


class Attack:
    """A pickle of this creates a folder when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.fixture(params=['path', 'url'])
def source_of(request, monkeypatch, tmp_path):
    """The path of a file, or a URL on this machine."""
    if request.param == 'path':
        yield lambda name: str(tmp_path / name)
        return
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('no_proxy', '*')
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with HTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield lambda name: f'http://127.0.0.1:{server.server_address[1]}/{name}'
        server.shutdown()


@pytest.mark.parametrize('name', ['a.pth', 'a.safetensors'])
def test_weights_are_loaded(name, tmp_path, source_of):
    source, target = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    save = save_file if name.endswith('safetensors') else torch.save
    save(source.state_dict(), tmp_path / name)

    load_checkpoint(target, source_of(name), map_location='cpu')

    assert torch.equal(target.weight, source.weight)


def test_code_in_a_checkpoint_is_refused_and_does_not_run(tmp_path, source_of):
    torch.save(dict(state_dict={}, meta=Attack(tmp_path / 'owned')), tmp_path / 'a.pth')

    with pytest.raises(CheckpointError, match='mkdir'):
        CheckpointLoader.load_checkpoint(source_of('a.pth'), map_location='cpu')
    assert not (tmp_path / 'owned').exists()


def test_mmengines_log_names_the_backend(tmp_path, monkeypatch):
    torch.save({'a': torch.zeros(1)}, tmp_path / 'a.pth')
    lines = []
    monkeypatch.setattr(
        'mmengine.runner.checkpoint.print_log',
        lambda line, *args, **kw: lines.append(line),
    )

    CheckpointLoader.load_checkpoint(str(tmp_path / 'a.pth'), logger='current')

    assert lines[0].startswith('Loads checkpoint by local backend')
