"""What would run code, overflow the stack or fill the memory is refused before that."""

from __future__ import annotations

import pickle
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub

from checkpoints.mutations import archive_of, integer, named, string, with_pickle
from mmseg_twins.checkpoints import pickles
from mmseg_twins.checkpoints.pickles import MAX_DEPTH, screen
from mmseg_twins.checkpoints.reading import read_checkpoint
from mmseg_twins.errors import CheckpointError

ENCODE = named('_codecs encode')
ONCE = ENCODE + b'(h\x01' + string('latin1') + b'tR'


def dict_of(value: bytes, *, key: bool = False) -> bytes:
    """A pickle of a dict with a value, or with that as a key."""
    return b'\x80\x02}(' + (value + b'N' if key else string('a') + value) + b'u.'


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'a.pth'


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
def test_bombs_are_refused_in_a_sentence(bomb, wrapped, path):
    content, reason = BOMBS[bomb]
    path.write_bytes(with_pickle(content) if wrapped else content)
    with pytest.raises(CheckpointError, match=f'{path} .*{reason}'):
        read_checkpoint(path)


def test_pickles_that_take_too_long_are_refused(path, monkeypatch):
    torch.save({str(number): number for number in range(1000)}, path)
    screen(path)
    monkeypatch.setattr(pickles, 'MAX_OPCODES', 1000)
    with pytest.raises(pickle.UnpicklingError, match='more than 1000 steps'):
        screen(path)


@pytest.mark.parametrize('case', [str, str.upper], ids=['same', 'other case'])
def test_archives_with_two_parts_of_one_name_are_refused(case, path):
    content = dict_of(b'N')
    path.write_bytes(
        archive_of([('a/data.pkl', content), (case('a/data.pkl'), content)])
    )
    with pytest.raises(pickle.UnpicklingError, match='two parts .* the same name'):
        screen(path)


def test_compressed_archives_are_refused(path):
    parts = [('a/data.pkl', dict_of(b'N')), ('a/data/0', bytes(1 << 20))]
    path.write_bytes(archive_of(parts, zipfile.ZIP_DEFLATED))
    with pytest.raises(pickle.UnpicklingError, match='compressed'):
        screen(path)


# --- what `torch.load(weights_only=True)` allows beyond PyTorch's own classes


def load(path):
    return torch.load(path, weights_only=True)


def test_training_curves_load(path):
    hub = MessageHub.get_instance('checkpoint_test')
    for value in (3.0, 1.0):
        hub.update_scalar('train/loss', value)
    hub.update_scalar('train/mIoU', np.float32(0.5))
    torch.save(dict(message_hub=hub.state_dict()), path)
    curves = load(path)['message_hub']['log_scalars']
    assert curves['train/loss'].mean() == 2.0
    assert curves['train/loss'].min() == 1.0
    assert isinstance(curves['train/mIoU'], HistoryBuffer)


@pytest.mark.parametrize('dtype', ['float64', 'float32', 'int64', 'bool', 'uint8'])
def test_numpy_arrays_and_scalars_load(path, dtype):
    array = np.array([0, 1, 1]).astype(dtype)
    torch.save(dict(array=array, scalar=array[1]), path)
    loaded = load(path)
    assert np.array_equal(loaded['array'], array)
    assert loaded['scalar'] == array[1]


class StolenAttribute:
    """A pickle of this asks for an attribute that is no statistic."""

    def __init__(self, owner, name: str) -> None:
        self.request = (owner, name)

    def __reduce__(self):
        return getattr, self.request


@pytest.mark.parametrize(
    ('owner', 'name'),
    [(HistoryBuffer, '__init__'), (np.ndarray, 'tofile'), (HistoryBuffer, 'update')],
)
def test_getattr_answers_for_statistics_only(path, owner, name):
    torch.save(StolenAttribute(owner, name), path)
    with pytest.raises(pickle.UnpicklingError, match=f'{name}.*refused'):
        load(path)


# A state that makes numpy take bytes of the file for pointers to objects.
STATE = b'(K\x03' + string('|') + b'NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ft'


def dtype_with_state(code: str) -> bytes:
    made = named('numpy dtype') + b'(' + string(code) + b'\x89\x88tR'
    return with_pickle(dict_of(made + STATE + b'b'))


@pytest.mark.parametrize('code', ['O', 'V8', 'i8,O', 'U2', 'M8[s]'])
def test_numpy_data_of_anything_but_numbers_is_refused(code, path):
    path.write_bytes(dtype_with_state(code))
    with pytest.raises(pickle.UnpicklingError, match='type .* only numbers are'):
        load(path)


def test_a_state_does_not_change_numpys_types(path):
    path.write_bytes(dtype_with_state('f8'))
    loaded = load(path)['a']
    assert loaded is np.dtype('f8')
    assert loaded.flags == 0


@pytest.mark.parametrize('name', ['ndarray', 'dtypes.ObjectDType', 'dtypes.StrDType'])
def test_numpys_classes_are_not_called(name, path):
    module, _, name = f'numpy.{name}'.rpartition('.')
    path.write_bytes(with_pickle(dict_of(named(f'{module} {name}') + b')R')))
    with pytest.raises(pickle.UnpicklingError):
        load(path)
