"""What would overflow the stack or fill the memory is refused before that."""

from __future__ import annotations

import pickle
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from checkpoints.mutations import archive_of, integer, named, string, with_pickle
from mmseg_twins.checkpoints import pickles as screening
from mmseg_twins.checkpoints.pickles import MAX_DEPTH, screen
from mmseg_twins.errors import CheckpointError

ENCODE = named('_codecs encode')
ONCE = ENCODE + b'(h\x01' + string('latin1') + b'tR'


def dict_of(value: bytes, *, key: bool = False) -> bytes:
    """A pickle of a dict with a value, or with that as a key."""
    return b'\x80\x02}(' + (value + b'N' if key else string('a') + value) + b'u.'


BOMBS = {
    'a deep tuple as a key': (
        dict_of(b')' + b'\x85' * 1_000_000, key=True),
        f'more than {MAX_DEPTH} tuples are nested',
    ),
    'a tuple that repeats itself as a key': (
        dict_of(b')' + b'q\x01h\x01\x86' * 90, key=True),
        'repeats the same content',
    ),
    'a string copied over and over': (
        dict_of(b'](' + string('x' * 10_000) + b'q\x01' + ONCE * 2000 + b'e'),
        'repeats the same content',
    ),
    'bytes as many as a number says': (
        dict_of(named('builtins bytearray') + integer(2**40) + b'\x85R'),
        'builtins.bytearray, which is refused',
    ),
}


@pytest.mark.parametrize('wrapped', [True, False], ids=['zip', 'bare'])
@pytest.mark.parametrize('bomb', BOMBS)
def test_bombs_are_refused_in_a_sentence(bomb, wrapped, tmp_path):
    content, reason = BOMBS[bomb]
    path = tmp_path / 'a.pth'
    path.write_bytes(with_pickle(content) if wrapped else content)
    with pytest.raises(CheckpointError, match=f'{path} .*{reason}'):
        CheckpointLoader.load_checkpoint(str(path), map_location='cpu')


def test_pickles_that_take_too_long_are_refused(tmp_path, monkeypatch):
    path = tmp_path / 'a.pth'
    torch.save({str(number): number for number in range(1000)}, path)
    screen(path)
    monkeypatch.setattr(screening, 'MAX_OPCODES', 1000)
    with pytest.raises(pickle.UnpicklingError, match='more than 1000 steps'):
        screen(path)


@pytest.mark.parametrize('case', [str, str.upper], ids=['same', 'other case'])
def test_archives_with_two_parts_of_one_name_are_refused(case, tmp_path):
    path = tmp_path / 'a.pth'
    pickled = dict_of(b'N')
    path.write_bytes(
        archive_of([('a/data.pkl', pickled), (case('a/data.pkl'), pickled)])
    )
    with pytest.raises(pickle.UnpicklingError, match='two parts .* the same name'):
        screen(path)


def test_compressed_archives_are_refused(tmp_path):
    path = tmp_path / 'a.pth'
    parts = [('a/data.pkl', dict_of(b'N')), ('a/data/0', bytes(1 << 20))]
    path.write_bytes(archive_of(parts, zipfile.ZIP_DEFLATED))
    with pytest.raises(pickle.UnpicklingError, match='compressed'):
        screen(path)


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_checkpoints_of_trainings_pass(zipped, tmp_path):
    model = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(50)))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 3)).sum().backward()
    optimizer.step()
    path = tmp_path / 'a.pth'
    content = {
        'state_dict': model.state_dict(),
        'optimizer': optimizer.state_dict(),
        'message_hub': {'loss': HistoryBuffer(np.ones(5000), np.ones(5000))},
        'meta': {'cfg': 'x' * 100_000, 'classes': tuple(map(str, range(150)))},
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    screen(path)
    loaded = CheckpointLoader.load_checkpoint(str(path), map_location='cpu')
    assert loaded['message_hub']['loss'].mean() == 1


# A state that makes numpy take bytes of the file for pointers to objects.
STATE = b'(K\x03' + string('|') + b'NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ft'


@pytest.mark.parametrize('code', ['O', 'V8', 'i8,O', 'U2', 'M8[s]'])
def test_numpy_data_of_anything_but_numbers_is_refused(code, tmp_path):
    dtype = named('numpy dtype') + b'(' + string(code) + b'\x89\x88tR' + STATE + b'b'
    path = tmp_path / 'a.pth'
    path.write_bytes(with_pickle(dict_of(dtype)))
    with pytest.raises(CheckpointError, match='numpy data of type .* numbers are read'):
        CheckpointLoader.load_checkpoint(str(path), map_location='cpu')


def test_a_state_does_not_change_numpys_types(tmp_path):
    dtype = named('numpy dtype') + b'(' + string('f8') + b'\x89\x88tR' + STATE + b'b'
    path = tmp_path / 'a.pth'
    path.write_bytes(with_pickle(dict_of(dtype)))
    loaded = torch.load(path, weights_only=True)['a']
    assert loaded is np.dtype('f8')
    assert loaded.flags == 0


@pytest.mark.parametrize('name', ['ndarray', 'dtypes.ObjectDType', 'dtypes.StrDType'])
def test_numpys_classes_are_not_called(name, tmp_path):
    module, _, name = f'numpy.{name}'.rpartition('.')
    path = tmp_path / 'a.pth'
    path.write_bytes(with_pickle(dict_of(named(f'{module} {name}') + b')R')))
    with pytest.raises(CheckpointError):
        CheckpointLoader.load_checkpoint(str(path), map_location='cpu')


@pytest.mark.parametrize('method', ['items', 'get', 'copy', '__class__'])
def test_a_dict_whose_methods_are_hidden_is_refused(method, tmp_path):
    hidden = named('collections OrderedDict') + b')R}' + string(method) + b'K\x03sb'
    path = tmp_path / 'a.pth'
    inside = b'}' + string('state_dict') + hidden + b's'
    for value in (hidden, inside):
        path.write_bytes(with_pickle(b'\x80\x02' + value + b'.'))
        with pytest.raises(CheckpointError, match='is damaged'):
            CheckpointLoader.load_checkpoint(str(path), map_location='cpu')


@pytest.mark.parametrize('content', [[], 'text', {'state_dict': 3}, {3: 4}])
def test_files_without_a_state_dict_are_refused(content, tmp_path):
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='is no checkpoint: '):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'a.pth'), map_location='cpu')


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_files_that_are_no_checkpoints_are_refused_in_a_sentence(suffix, tmp_path):
    path = tmp_path / f'a{suffix}'
    for content in (b'', b'text', b'\x80\x02}', b'PK\x03\x04' + bytes(100)):
        path.write_bytes(content)
        with pytest.raises(
            CheckpointError, match=f'{path} is (empty|truncated|no checkpoint)'
        ):
            CheckpointLoader.load_checkpoint(str(path), map_location='cpu')


def test_a_missing_file_is_named(tmp_path):
    for suffix in ('.pth', '.safetensors'):
        with pytest.raises(FileNotFoundError, match=f'no{suffix} can not be found'):
            CheckpointLoader.load_checkpoint(str(tmp_path / f'no{suffix}'))
