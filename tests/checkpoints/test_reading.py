"""Checkpoints of all formats are read; what is not a checkpoint is refused."""

from __future__ import annotations

import argparse
import warnings

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from safetensors.torch import save_file

from checkpoints.mutations import named, string, with_pickle
from mmseg_twins.checkpoints.pickles import ZIP_MAGIC
from mmseg_twins.checkpoints.reading import PICKLE_MAGIC, read_checkpoint, read_source
from mmseg_twins.errors import CheckpointError


@pytest.mark.parametrize('wrapper', [None, 'model', 'state_dict'])
@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_wrappers_and_formats_are_read(wrapper, zipped, tmp_path):
    state = {'a': torch.arange(3.0), 'b': torch.zeros(2)}
    content = {wrapper: state, 'epoch': 3} if wrapper else state
    path = tmp_path / 'file.bin'
    torch.save(content, path, _use_new_zipfile_serialization=zipped)

    source = read_source(path)

    assert source.wrapper == wrapper
    assert source.others == (('epoch',) if wrapper else ())
    assert torch.equal(source.state['a'], state['a'])


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_checkpoints_of_trainings_are_read(zipped, tmp_path):
    model = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(50)))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 3)).sum().backward()
    optimizer.step()
    path = tmp_path / 'a.pth'
    content = {
        'state_dict': model.state_dict(),
        'optimizer': optimizer.state_dict(),
        'message_hub': {'loss': HistoryBuffer(np.ones(5000), np.ones(5000))},
        'best': np.float32(0.5),
        'meta': {'cfg': 'x' * 100_000, 'classes': tuple(map(str, range(150)))},
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)

    assert read_checkpoint(path)['message_hub']['loss'].mean() == 1
    assert read_source(path).meta['classes'][3] == '3'


def test_the_command_line_in_official_checkpoints_is_allowed_there_alone(tmp_path):
    content = {'model': {'a': torch.zeros(1)}, 'args': argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / 'a.pth')

    assert read_source(tmp_path / 'a.pth').others == ('args',)
    with pytest.raises(CheckpointError, match=r'refers to argparse\.Namespace'):
        read_checkpoint(tmp_path / 'a.pth')


def test_averaged_weights_are_taken_on_demand(tmp_path):
    path = tmp_path / 'file.pth'
    weights, averages = {'a': torch.zeros(1)}, {'a': torch.ones(1)}
    torch.save({'model': weights, 'model_ema': averages}, path)

    assert read_source(path).state['a'] == 0
    assert read_source(path, use_ema=True).state['a'] == 1
    torch.save({'model': weights}, path)
    with pytest.raises(CheckpointError, match="--use-ema: .* it has 'model'"):
        read_source(path, use_ema=True)


@pytest.mark.parametrize('method', ['items', 'get', 'copy', '__class__'])
def test_a_dict_whose_methods_are_hidden_is_refused(method, tmp_path):
    hidden = named('collections OrderedDict') + b')R}' + string(method) + b'K\x03sb'
    path = tmp_path / 'a.pth'
    inside = b'}' + string('state_dict') + hidden + b's'
    for value in (hidden, inside):
        path.write_bytes(with_pickle(b'\x80\x02' + value + b'.'))
        with pytest.raises(CheckpointError, match='is damaged'):
            read_checkpoint(path)


@pytest.mark.parametrize('content', [[], 'text', {'state_dict': 3}, {3: 4}])
def test_files_without_a_state_dict_are_refused(content, tmp_path):
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='is not a checkpoint: '):
        read_checkpoint(tmp_path / 'a.pth')


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize(
    'content', [b'', b'text', b'\x80\x02}', b'PK\x03\x04' + bytes(100)]
)
def test_files_that_are_no_checkpoints_are_refused(content, suffix, tmp_path):
    path = tmp_path / f'a{suffix}'
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f'{path} is (empty|truncated|not a)'):
        read_checkpoint(path)


def test_folders_and_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='there is no file .*none.pth'):
        read_source(tmp_path / 'none.pth')
    with pytest.raises(IsADirectoryError, match='is a folder'):
        read_source(tmp_path)


@pytest.mark.parametrize('first', [*PICKLE_MAGIC, ZIP_MAGIC[:1]])
def test_a_safetensors_file_may_begin_as_other_formats_do(first: bytes, tmp_path):
    path = tmp_path / 'weights.safetensors'
    save_file({'a': torch.ones(2)}, path)
    content = path.read_bytes()
    # The first byte is the lowest one of the header's length; spaces may end a header.
    length = int.from_bytes(content[:8], 'little')
    spaces = (first[0] - length) % 256
    header = content[8 : 8 + length] + b' ' * spaces
    start = (length + spaces).to_bytes(8, 'little')
    path.write_bytes(start + header + content[8 + length :])

    assert path.read_bytes().startswith(first)
    assert torch.equal(read_source(path).state['a'], torch.ones(2))


def test_pytorchs_warnings_do_not_stand_beside_the_sentence(
    tmp_path, monkeypatch, recwarn
):
    path = tmp_path / 'a.pth'
    torch.save({'a': torch.zeros(2)}, path)

    def load(*_, **__):
        module = 'torch._weights_only_unpickler'
        warnings.warn_explicit('is deprecated', UserWarning, module, 1, module)
        raise RuntimeError('broken')

    monkeypatch.setattr(torch, 'load', load)
    with pytest.raises(CheckpointError, match='broken'):
        read_checkpoint(path)
    assert not recwarn.list
