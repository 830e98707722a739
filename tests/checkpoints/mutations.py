"""Broken and hostile checkpoints, made from a seed, and what becomes of them.

    PYTHONPATH=tests python -m checkpoints.mutations --number 3000

makes that many files and gives each to the converter, to mmengine's loader as
``--resume`` and ``tools/test.py`` use it, and to the reader of ``tools/predict.py``,
each in a process of its own with a limit on time and memory. It prints a table and
exits with status 1 if anything but a refusal in a sentence or a right conversion has
happened.

Tensors of most files repeat one value, so that a whole checkpoint has a few kilobytes;
``--whole`` takes every so many from one that has all its values.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import load_checkpoint
from safetensors.torch import save

from builders import cheap_state, random_state, shapes_of
from mmseg_twins.checkpoints.reading import read_source
from mmseg_twins.cli import convert as cli
from mmseg_twins.errors import CheckpointError

TIME = 20  # seconds of computing for one file, as writing waits for the disk
MEMORY = 3 << 30  # bytes of addresses beyond those that a process starts with
EXECUTED = 'executed'  # a file that hostile pickles make beside the checkpoint
SENTENCE = 700  # characters; a message is no dump

Content = tuple[str, bytes]  # ending of the file's name, bytes


class Seeds:
    """Sound checkpoints to be mutated.

    Args:
        whole: whether every tensor has values of its own.
    """

    def __init__(self, whole: bool = False) -> None:
        classifier = shapes_of('official-cls', 'svt-s')
        torch.manual_seed(0)
        self.state = (
            random_state(classifier, torch.float16)
            if whole
            else cheap_state(classifier)
        )
        self.segmentor = cheap_state(shapes_of('mmseg-fpn', 'svt-s'))
        small = {name: torch.zeros(2, 3) for name in list(classifier)[:20]}
        self.content = {
            'model': self.state,
            'optimizer': {'state': {0: {'step': 3}}, 'param_groups': [{'lr': 1e-3}]},
            'epoch': 3,
            'args': argparse.Namespace(lr=1e-3, output_dir='out'),
        }
        self.mmengine = {
            'meta': {'epoch': 1, 'iter': 20, 'dataset_meta': {'classes': ('a', 'b')}},
            'state_dict': OrderedDict(self.segmentor),
            'message_hub': {
                'log_scalars': {'loss': HistoryBuffer([1.0, 2.0], [1, 1])},
                'runtime_info': {'iter': 20, 'best': np.float64(0.5)},
            },
        }
        self.files = {
            'zip': ('.pth', zipped(self.content)),
            'zip of mmengine': ('.pth', zipped(self.mmengine)),
            'legacy': ('.pth', legacy(self.content)),
            'safetensors': ('.safetensors', save(small)),
        }
        if whole:
            self.files['safetensors'] = ('.safetensors', save(self.state))


def zipped(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def legacy(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def saved(rng: random.Random, content: object) -> Content:
    return '.pth', rng.choice((zipped, zipped, legacy))(content)


def any_file(rng: random.Random, seeds: Seeds) -> Content:
    return rng.choice(list(seeds.files.values()))


def spot(rng: random.Random, size: int) -> int:
    """A place in a file, often near its ends, where formats keep their tables."""
    if rng.random() < 0.5:
        return rng.randrange(size)
    near = min(size, 4000)
    return rng.choice((rng.randrange(near), size - 1 - rng.randrange(near)))


# --- the bytes of files


def flipped_bits(rng: random.Random, seeds: Seeds) -> Content:
    suffix, content = any_file(rng, seeds)
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        content[spot(rng, len(content))] ^= 1 << rng.randrange(8)
    return suffix, bytes(content)


def truncated(rng: random.Random, seeds: Seeds) -> Content:
    suffix, content = any_file(rng, seeds)
    return suffix, content[: spot(rng, len(content))]


def moved_bytes(rng: random.Random, seeds: Seeds) -> Content:
    """A stretch cut out, written twice, zeroed, or replaced by noise."""
    suffix, content = any_file(rng, seeds)
    start = spot(rng, len(content))
    end = min(start + rng.choice((1, 16, 512, 4096, 60_000)), len(content))
    piece = content[start:end]
    new = rng.choice((b'', piece * 2, bytes(len(piece)), rng.randbytes(len(piece))))
    return suffix, content[:start] + new + content[end:]


def wrong_ending(rng: random.Random, seeds: Seeds) -> Content:
    """One format under the name of another, or after something else."""
    suffix, content = any_file(rng, seeds)
    suffix = rng.choice(('.pth', '.safetensors', '.pt', '.bin'))
    other = any_file(rng, seeds)[1]
    return suffix, rng.choice((content, content + other, rng.randbytes(20) + content))


# --- zip archives


def parts_of(content: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def archive_of(
    parts: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED
) -> bytes:
    buffer = io.BytesIO()
    with (
        warnings.catch_warnings(),
        zipfile.ZipFile(buffer, 'w', compression) as archive,
    ):
        warnings.filterwarnings('ignore', 'Duplicate name')
        for part, content in parts:
            archive.writestr(part, content)
    return buffer.getvalue()


def with_pickle(pickled: bytes, like: bytes | None = None) -> bytes:
    """A zip archive, with sound checksums, around a pickle."""
    like = like or zipped({'a': torch.zeros(3)})
    return archive_of(
        [
            (name, pickled if name.endswith('/data.pkl') else content)
            for name, content in parts_of(like)
        ]
    )


def changed_parts(rng: random.Random, seeds: Seeds) -> Content:
    """Parts of an archive renamed, left out, doubled, emptied or in another order."""
    parts = parts_of(zipped({'model': dict(list(seeds.state.items())[:9])}))
    for _ in range(rng.randint(1, 3)):
        index = rng.randrange(len(parts))
        name, content = parts[index]
        match rng.randrange(7):
            case 0:
                del parts[index]
            case 1:
                parts.append((name, rng.randbytes(8)))
            case 2:
                parts[index] = (name.upper(), content)
                parts.append((name, content))
            case 3:
                parts[index] = (name, b'')
            case 4:
                rng.shuffle(parts)
            case 5:
                parts[index] = (rng.choice(('../x', '/etc/x', 'x/constants.pkl')), b'')
            case 6:
                parts[index] = (name, content * 2)
        if not parts:
            break
    return '.pth', archive_of(parts)


def claimed_sizes(rng: random.Random, seeds: Seeds) -> Content:
    """Tables of an archive with sizes, places and methods that are not so."""
    content = bytearray(zipped({'model': dict(list(seeds.state.items())[:9])}))
    mark, fields = rng.choice(
        (
            (b'PK\x01\x02', ((10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (42, 4))),
            (b'PK\x03\x04', ((6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2))),
            (b'PK\x05\x06', ((8, 2), (10, 2), (12, 4), (16, 4), (20, 2))),
            (b'PK\x06\x06', ((4, 8), (24, 8), (32, 8), (40, 8), (48, 8))),
        )
    )
    places = [i for i in range(len(content)) if content.startswith(mark, i)]
    if places:
        place = rng.choice(places)
        offset, width = rng.choice(fields)
        value = rng.choice(
            (0, 1, 8, 2 ** (8 * width) - 1, rng.randrange(2 ** (8 * width)))
        )
        content[place + offset : place + offset + width] = value.to_bytes(
            width, 'little'
        )
    return '.pth', bytes(content)


def zip_bomb(rng: random.Random, seeds: Seeds) -> Content:
    """An archive that unpacks to a hundred times its size and more."""
    size = rng.choice((10, 50, 200)) << 20
    parts = parts_of(zipped({'model': dict(list(seeds.state.items())[:9])}))
    name = parts[-1][0]
    where = rng.choice((name, name.rpartition('/')[0] + '/data.pkl', 'archive/data/99'))
    parts = [part for part in parts if part[0] != where] + [(where, bytes(size))]
    method = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    return '.pth', archive_of(parts, method if size <= 50 << 20 else 8)


# --- state dicts


def odd_tensor(rng: random.Random) -> object:
    zeros = torch.zeros(4, 4)
    return rng.choice(
        (
            lambda: zeros.to_sparse(),
            lambda: torch.quantize_per_tensor(zeros, 0.1, 0, torch.quint8),
            lambda: zeros.to(torch.complex64),
            lambda: zeros.bool(),
            lambda: zeros.to(torch.float8_e4m3fn),
            lambda: zeros.to('meta'),
            lambda: zeros[:0],
            lambda: torch.tensor(float('nan')),
            lambda: torch.zeros(1).expand(2**40),
            lambda: torch.zeros(1).expand(2**20, 2**20, 2**10),
            lambda: torch.nn.Parameter(zeros),
            lambda: None,
            lambda: 3,
            lambda: 'weights',
            lambda: [zeros],
            lambda: {'weight': zeros},
            lambda: np.zeros(3),
        )
    )()


def changed_names(rng: random.Random, seeds: Seeds) -> Content:
    """Entries renamed, left out, doubled, or with names that are none."""
    state = dict(rng.choice((seeds.state, seeds.segmentor)))
    for _ in range(rng.choice((1, 1, 3, 40))):
        name = rng.choice(list(state))
        tensor = state.pop(name)
        text = name if isinstance(name, str) else 'x'
        new = rng.choice(
            (
                None,
                text[::-1],
                text.replace('.', '_'),
                text.replace('0', '7'),
                'module.' + text,
                'module.module.' + text,
                text + '.' * 40,
                text + '\n\x00\u2028',
                '\ud800' + text,
                'x' * 100_000,
                '',
                rng.randrange(2**31),
                10**300,
                ('a', ('b',)),
                None,
                b'bytes',
                text.replace('blocks', 'layers'),
                text + '9' * 30,
            )
        )
        if new is not None:
            state[new] = tensor
        elif not state:
            break
    return saved(rng, rng.choice((state, {'model': state}, {'state_dict': state})))


def changed_tensors(rng: random.Random, seeds: Seeds) -> Content:
    """Tensors reshaped, of other types, repeating, not finite, or no tensors."""
    state = dict(rng.choice((seeds.state, seeds.segmentor)))
    for _ in range(rng.choice((1, 1, 3, 40))):
        name = rng.choice(list(state))
        tensor = state[name]
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            continue
        shape = list(tensor.shape)
        match rng.randrange(6):
            case 0:
                state[name] = odd_tensor(rng)
            case 1:
                state[name] = torch.zeros(()).expand([*shape, 1])
            case 2 if shape:
                shape[rng.randrange(len(shape))] = rng.choice((0, 1, 2**16, 2**40))
                try:
                    state[name] = torch.zeros(()).expand(shape)
                except RuntimeError:  # more than a tensor can claim
                    state[name] = torch.zeros(0)
            case 3:
                kinds = (torch.float64, torch.bfloat16, torch.int64, torch.uint8)
                state[name] = torch.zeros((), dtype=rng.choice(kinds)).expand(shape)
            case 4:
                value = rng.choice((float('nan'), float('inf'), 3e38, -1e30, 1e-40))
                state[name] = torch.full((), value).expand(shape)
            case 5:
                state[name] = torch.zeros(()).expand(shape[::-1])
    return saved(rng, rng.choice((state, {'model': state}, {'state_dict': state})))


def wide_heads(rng: random.Random, seeds: Seeds) -> Content:
    """Heads of other widths, up to such as no memory holds."""
    old, new = rng.choice((128, 150, 256)), rng.choice((0, 1, 7, 5000, 2**17, 2**33))
    state = {}
    for name, tensor in seeds.segmentor.items():
        shape = [
            new if size == old and not name.startswith('backbone.') else size
            for size in tensor.shape
        ]
        if any(shape) and np.prod([float(size) for size in shape]) > 2.0**60:
            shape = [1]
        state[name] = tensor.reshape(-1)[:1].squeeze().expand(shape)
    return saved(rng, {'state_dict': state})


def odd_structure(rng: random.Random, seeds: Seeds) -> Content:
    """Dicts within themselves, deep nestings, wrappers and ``meta`` of other kinds."""
    state = dict(list(seeds.state.items()))
    content: object = {'model': state}
    match rng.randrange(12):
        case 0:
            content['model'] = content
        case 1:
            content['state_dict'] = state
        case 2:
            for _ in range(rng.choice((1, 10, 60))):
                content = {'model': content}
            content = deep(content)
        case 3:
            content = deep([state])
        case 4:
            content['meta'] = rng.choice(
                (
                    {'CLASSES': [('a',)] * 3, 'PALETTE': 3},
                    {'dataset_meta': {'classes': {1: 2}, 'palette': [[1, 'x'], 3]}},
                    {'dataset_meta': 3, 'CLASSES': 'abc', 'PALETTE': [[2**70] * 3]},
                    [1, 2, 3],
                )
            )
            content = {'meta': content['meta'], 'state_dict': seeds.segmentor}
        case 5:
            content = rng.choice(([], (), 'text', 3.5, None, {}, {1: 2}, {'model': 3}))
        case 6:
            content = {10**4000: 1, 'x' * 1000: 2, ('a',): 3}
        case 7:
            content['model_ema'] = state
            content['state_dict_ema'] = 3
        case 8:
            content = torch.zeros(1).expand(2**40)
        case 9:  # an OrderedDict whose methods are hidden
            hidden = named('collections OrderedDict') + b')R' + string('a')
            hidden += (
                storage(random.Random(3))
                + b's}'
                + string(
                    rng.choice(
                        ('items', 'get', 'keys', 'copy', '_metadata', '__iter__')
                    )
                )
            )
            hidden += b'K\x03sb'
            return '.pth', with_pickle(
                b'\x80\x02'
                + rng.choice((b'}' + string('model') + hidden + b's', hidden))
                + b'.'
            )
        case 10:
            tensor = torch.nn.Parameter(torch.zeros(64))
            for name in ('detach', 'numel', 'shape_', 'untyped_storage', 'isfinite'):
                tensor.__dict__[name] = 3
            content['model'] = {**state, 'blocks.0.0.norm1.bias': tensor}
        case 11:
            content = {'model': {str(i): torch.zeros(1) for i in range(5000)}}
    return saved(rng, content)


def deep(value: object) -> object:
    """Within as many tuples as the pickler still takes."""
    for _ in range(60):
        value = (value,)
    return {'model': {'a': value}, 'x': value}


# --- pickles


def flipped_pickle(rng: random.Random, seeds: Seeds) -> Content:
    """Bytes of the pickle changed in an archive whose checksums are right."""
    like = rng.choice((zipped(seeds.mmengine), zipped({'model': seeds.state})))
    pickled = bytearray(next(c for n, c in parts_of(like) if n.endswith('/data.pkl')))
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.choice((rng.randrange(len(pickled)), rng.randrange(300)))
        match rng.randrange(3):
            case 0:
                pickled[place] ^= 1 << rng.randrange(8)
            case 1:
                pickled[place] = rng.choice(OPCODES)
            case 2:
                del pickled[place : place + rng.choice((1, 4, 30))]
    return '.pth', with_pickle(bytes(pickled), like)


# Those that PyTorch's unpickler knows, and some that it does not.
OPCODES = b'\x81RbaeSsu(t\x85\x86\x87N\x89\x88)]}\x8fJKMGXU.Qhjqr\x8ac0iol\x93\x94'
ALLOWED = (
    'collections OrderedDict', 'collections Counter', 'builtins set',
    'builtins bytearray', 'builtins getattr', 'builtins complex', '_codecs encode',
    'torch Size', 'torch device', 'torch Tensor', 'torch FloatStorage',
    'torch FloatTensor', 'torch.sparse FloatTensor', 'torch float32', 'torch qint8',
    'torch.storage UntypedStorage', 'torch.storage TypedStorage',
    'torch.serialization _get_layout', 'torch.nn.parameter Parameter',
    'torch._utils _rebuild_tensor', 'torch._utils _rebuild_tensor_v2',
    'torch._utils _rebuild_parameter', 'torch._utils _rebuild_parameter_with_state',
    'torch._utils _rebuild_qtensor', 'torch._utils _rebuild_sparse_tensor',
    'torch._utils _rebuild_meta_tensor_no_storage',
    'torch._utils _rebuild_nested_tensor', 'torch._utils _rebuild_wrapper_subclass',
    'torch._utils _rebuild_device_tensor_from_numpy',
    'torch._utils _rebuild_device_tensor_from_cpu_tensor',
    'torch._tensor _rebuild_from_type_v2', 'argparse Namespace',
    'mmengine.logging.history_buffer HistoryBuffer', 'numpy dtype', 'numpy ndarray',
    'numpy._core.multiarray _reconstruct', 'numpy.core.multiarray scalar',
    'numpy.dtypes Float64DType', 'numpy.dtypes ObjectDType', 'numpy.dtypes StrDType',
)  # fmt: skip


def named(text: str) -> bytes:
    """The opcode for a global, given as ``'module name'``."""
    return b'c' + text.replace(' ', '\n').encode() + b'\n'


def string(value: str) -> bytes:
    encoded = value.encode()
    return b'X' + struct.pack('<I', len(encoded)) + encoded


def integer(value: int) -> bytes:
    encoded = pickle.encode_long(value)
    return b'\x8a' + bytes([len(encoded)]) + encoded


def value_soup(rng: random.Random, depth: int = 0) -> bytes:
    """A random value out of what PyTorch's unpickler accepts, calls included."""
    kind = rng.randrange(14 if depth < 4 else 7)
    inner = (
        [value_soup(rng, depth + 1) for _ in range(rng.randrange(4))]
        if kind > 6
        else []
    )
    match kind:
        case 0:
            return rng.choice((b'N', b'\x88', b'\x89', b')', b']', b'}'))
        case 1:
            return integer(rng.choice((0, 1, -1, 3, 64, 2**16, 2**33, -(2**40), 2**62)))
        case 2:
            return b'G' + struct.pack(
                '>d', rng.choice((0.0, -1.5, 1e300, float('nan')))
            )
        case 3:
            return string(
                rng.choice(('', 'f8', '<f8', 'O', 'storage', 'cpu', 'latin1'))
            )
        case 4:
            return b'U' + bytes([4]) + rng.randbytes(4)
        case 5:
            return named(rng.choice(ALLOWED))
        case 6:
            return storage(rng)
        case 7:
            return b'(' + b''.join(inner) + b't'
        case 8:
            return b'](' + b''.join(inner) + b'e'
        case 9 | 10 | 11:
            call = named(rng.choice(ALLOWED)) + b'(' + b''.join(inner) + b't'
            return call + rng.choice((b'R', b'R', b'\x81'))
        case 12:
            array = named('numpy._core.multiarray _reconstruct') + b'('
            array += named('numpy ndarray') + b'(K\x00t' + string('f8') + b'tR'
            return array + b'(' + b''.join(inner) + b'tb'
        case _:
            owner = named(rng.choice(ALLOWED)) + b')' + rng.choice((b'R', b'\x81'))
            return owner + (inner[0] if inner else b'}') + b'b'


def storage(rng: random.Random) -> bytes:
    """A tensor with a storage, size, strides and offset that may not fit together."""

    def numbers() -> bytes:
        values = (0, 1, 2, 3, 100, -1, 2**31, 2**62)
        return b'(' + b''.join(integer(rng.choice(values)) for _ in range(2)) + b't'

    count = integer(rng.choice((0, 3, 2**40, -1)))
    pid = (
        b'('
        + string('storage')
        + named('torch FloatStorage')
        + string('0')
        + string('cpu')
    )
    made = named('torch._utils _rebuild_tensor_v2') + b'(' + pid + count + b'tQ'
    made += integer(rng.choice((0, 1, -1, 2**40))) + numbers() + numbers()
    return made + b'\x89' + named('collections OrderedDict') + b')RtR'


def pickle_soup(rng: random.Random, seeds: Seeds) -> Content:
    """Random calls of all that PyTorch allows, with random arguments."""
    values = b''.join(
        string(f'k{i}') + value_soup(rng) for i in range(rng.randint(1, 5))
    )
    return '.pth', with_pickle(b'\x80\x02}(' + values + b'u.')


def opcode_soup(rng: random.Random, seeds: Seeds) -> Content:
    """Random opcodes, in an archive or bare."""
    body = bytes(rng.choices(OPCODES, k=rng.randrange(200)))
    if rng.random() < 0.5:
        body = b'}' + b''.join(
            rng.choice((bytes([rng.choice(OPCODES)]), value_soup(rng, 2)))
            for _ in range(rng.randrange(30))
        )
    pickled = b'\x80\x02' + body + b'.'
    if rng.random() < 0.3:
        return '.pth', pickled
    return '.pth', with_pickle(pickled)


def bomb(rng: random.Random, seeds: Seeds) -> Content:
    """A few bytes that would overflow the stack, take all memory, or never end."""
    many = rng.choice((200, 20_000, 2_000_000))
    encode = named('_codecs encode')
    state = b'(K\x03' + string(rng.choice('<>|')) + b'NNN' + integer(-1) + integer(-1)
    state += integer(rng.choice((0, 1, 63, 255))) + b't'
    made_dtype = named('numpy dtype') + b'('
    made_dtype += string(rng.choice(('f8', 'O', 'V8', 'i8,O', 'U9')))
    made_dtype += b'\x89\x88tR' + state + b'b'
    raw = encode + b'(' + string('abcdefgh' * 3) + string('latin1') + b'tR'
    array = named('numpy._core.multiarray _reconstruct') + b'('
    array += named('numpy ndarray') + b'(K\x00t' + string('b') + b'tR'
    # a tensor that repeats a number, and is cast to another type
    repeated = named('torch._utils _rebuild_tensor_v2') + b'((' + string('storage')
    repeated += (
        named('torch FloatStorage') + string('0') + string('cpu') + b'K\x03tQK\x00('
    )
    repeated += integer(2**35) + b't(K\x00t\x89' + named('collections OrderedDict')
    cast = (
        named('torch._utils _rebuild_device_tensor_from_cpu_tensor') + b'(' + repeated
    )
    cast += b')RtR' + named('torch float64') + string('cpu') + b'\x89tR'
    value = rng.choice(
        (
            b')' + b'\x85' * many,  # tuples within tuples
            b']' * many + b'a' * (many - 1),
            (b'}' + string('k')) * many + b'}' + b's' * many,
            named('builtins bytearray') + integer(2**36) + b'\x85R',
            named('torch Tensor') + integer(2**36) + b'\x85R',
            named('torch.storage UntypedStorage') + integer(2**38) + b'\x85R',
            # one long string encoded over and over
            b'](' + string('x' * 1_000_000) + b'q\x01'
            + (encode + b'(h\x01' + string('utf-32') + b'tR') * 6000 + b'e',
            # a billion laughs
            b')' + b'q\x01h\x01\x86' * 90,
            # numpy takes bytes of the file for pointers
            array + b'(K\x01K\x03\x85' + made_dtype + b'\x89' + raw + b'tb',
            named('numpy._core.multiarray scalar') + b'(' + made_dtype + raw + b'tR',
            named('numpy ndarray') + b'(K\x03\x85' + string('O') + raw + b'tR',
            named('numpy._core.multiarray _reconstruct') + b'(' + named('numpy ndarray')
            + b'(' + integer(2**33) + b't' + string('O') + b'tR',
            cast,
        )
    )  # fmt: skip
    key_first = rng.random() < 0.5
    entry = value + b'K\x01' if key_first else string('x') + value
    pickled = b'\x80\x02}(' + entry + b'u.'
    if rng.random() < 0.2:
        return '.pth', pickled
    return '.pth', with_pickle(pickled)


def code(rng: random.Random, seeds: Seeds) -> Content:
    """Pickles that want to run something, each of which would leave a file."""
    command = f'touch {EXECUTED}'
    write = f'open({EXECUTED!r}, "w")'
    call = rng.choice(
        (
            named('os system') + string(command) + b'\x85R',
            named('posix system') + string(command) + b'\x85R',
            named('nt system') + string(command) + b'\x85R',
            named('builtins eval') + string(write) + b'\x85R',
            named('__builtin__ eval') + string(write) + b'\x85R',
            named('builtins exec') + string(write) + b'\x85R',
            named('builtins open') + string(EXECUTED) + string('w') + b'\x86R',
            named('subprocess call') + b']' + string('touch') + b'a' + string(EXECUTED)
            + b'a\x85R',
            named('numpy.testing._private.utils runstring') + string(write) + b'}\x86R',
            named('torch._utils _rebuild_from_type_v2') + b'(' + named('os system')
            + named('torch Tensor') + string(command) + b'\x85}tR',
            named('builtins getattr') + named('os system') + string('__call__')
            + b'\x86R' + string(command) + b'\x85R',
            named('builtins getattr')
            + named('mmengine.logging.history_buffer HistoryBuffer')
            + string('__init__') + b'\x86R' + string('__globals__') + b'\x86R',
            named('numpy ndarray') + b')\x81' + string(EXECUTED) + b'b',
            b'(' + string(command) + b'ios\nsystem\n',
            b'(' + named('os system') + string(command) + b'o',
            string('os') + string('system') + b'\x93' + string(command) + b'\x85R',
            named('torch.hub load') + string(command) + b'\x85R',
            named('torch load') + string(command) + b'\x85R',
            named('mmengine.config Config') + b')R',
            named('pathlib Path') + string(EXECUTED) + b'\x85R',
            named('torch.jit load') + string(command) + b'\x85R',
            named('functools partial') + named('os system') + string(command)
            + b'\x86R)R',
            named('argparse FileType') + string('w') + b'\x85R' + string(EXECUTED)
            + b'\x85R',
            named('collections OrderedDict.fromkeys') + b')R',
            b'\x82\x01' + string(command) + b'\x85R',
        )
    )  # fmt: skip
    protocol = rng.choice((b'\x80\x02', b'\x80\x04', b'\x80\x05', b''))
    body = rng.choice(
        (b'}(' + string('x') + call + b'u.', call + b'.', b'}' + call + b'K\x01s.')
    )
    if rng.random() < 0.3:
        return '.pth', protocol + body
    if rng.random() < 0.2:  # after a sound beginning of the legacy format
        sound = legacy({'a': 1})
        return '.pth', sound[: sound.rindex(b'\x80\x02}')] + protocol + body
    return '.pth', with_pickle(protocol + body)


# --- safetensors


def safetensors_header(rng: random.Random, seeds: Seeds) -> Content:
    """Headers with other types, shapes and places, with odd JSON, or cut."""
    content = seeds.files['safetensors'][1]
    (length,) = struct.unpack('<Q', content[:8])
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    entry = header[rng.choice([key for key in header if key != '__metadata__'])]
    match rng.randrange(9):
        case 0:
            entry['dtype'] = rng.choice(('F64', 'I8', 'F8_E4M3', 'X', '', 3, None))
        case 1:
            entry['shape'] = rng.choice(
                ([2**40], [], [-1], [2**62, 2**62], 'x', [0, 3])
            )
        case 2:
            entry['data_offsets'] = rng.choice(
                ([0, 2**60], [5, 0], [-1, 3], [], [0, 4], [10**30, 10**31])
            )
        case 3:
            header['__metadata__'] = {'meta': '[' * 100_000}
        case 4:
            header['__metadata__'] = {
                'meta': rng.choice(('{', '3', '[1]', '{"a": NaN}'))
            }
        case 5:
            header['\ud800' if rng.random() < 0.2 else 'x' * 1000] = dict(entry)
        case 6:
            entry.clear()
        case 7:
            header['__metadata__'] = rng.choice((3, [], {'a': 3}, None))
        case 8:
            header = {}
    encoded = json.dumps(header).encode()
    if rng.random() < 0.15:
        encoded = b'{"a":' * 20_000 + b'1' + b'}' * 20_000
    length = len(encoded)
    if rng.random() < 0.15:
        length = rng.choice((0, 1, 2**63, 2**64 - 1, length + 10, length - 10)) % 2**64
    return '.safetensors', struct.pack('<Q', length) + encoded + body


def untouched(rng: random.Random, seeds: Seeds) -> Content:
    """What has to convert: other wrappers, orders, types and harmless company."""
    state = list(rng.choice((seeds.state, seeds.segmentor)).items())
    rng.shuffle(state)
    kind = rng.choice((torch.float16, torch.bfloat16, torch.float32))
    prefix = rng.choice(('', 'module.'))
    renamed = {
        prefix + name: tensor if tensor.dtype == torch.int64 else tensor.to(kind)
        for name, tensor in state
    }
    if not any(tensor.stride() == (0,) for tensor in renamed.values()):
        renamed = {name: tensor.clone() for name, tensor in renamed.items()}
    wrapper = rng.choice((None, 'model', 'state_dict'))
    extra = {'epoch': 3, 'args': argparse.Namespace(a=1), 'best': np.float32(3)}
    return saved(rng, {wrapper: renamed, **extra} if wrapper else renamed)


KINDS: dict[str, Callable[[random.Random, Seeds], Content]] = {
    kind.__name__.replace('_', ' '): kind
    for kind in (
        untouched, flipped_bits, truncated, moved_bytes, wrong_ending, changed_parts,
        claimed_sizes, zip_bomb, changed_names, changed_tensors, wide_heads,
        odd_structure, flipped_pickle, pickle_soup, opcode_soup, bomb, code,
        safetensors_header,
    )
}  # fmt: skip


# --- what becomes of them


class Outcome(NamedTuple):
    """What became of a file.

    Attributes:
        kind: ``'refused'``, ``'converted'`` (or read), or ``'other'``.
        text: the sentence, or what has happened.
        memory: bytes that the process has grown by, at its largest.
        time: seconds that it has computed.
    """

    kind: str
    text: str
    memory: int
    time: float


def convert(path: Path) -> tuple[str, str]:
    """Gives a file to the command ``twins2mmseg``, over a file that is there."""
    store = path.parent / 'out' / 'store.pth'
    store.parent.mkdir()
    store.write_text('precious')
    said = io.StringIO()
    with redirect_stderr(said), redirect_stdout(io.StringIO()):
        status = cli.main([str(path), str(store), '--force'])
    if os.listdir(store.parent) != [store.name]:
        return 'other', f'left {os.listdir(store.parent)}'
    if status:
        if store.read_text() != 'precious':
            return 'other', 'the store was damaged'
        return 'refused', said.getvalue().removesuffix('\n')
    written = torch.load(store, weights_only=True)['state_dict']
    given = read_source(path).state
    for key, tensor in given.items():
        same = written.get(key.removeprefix('module.'))
        if same is not None and not torch.equal(same, tensor):
            return 'other', f'{key} was changed'
    shapes = {key: tuple(tensor.shape) for key, tensor in written.items()}
    wanted = shapes_of('mmseg', 'svt-s')
    if 'layers.0.0.attn.qkv.weight' not in shapes:
        wanted = shapes_of('mmseg-fpn', 'svt-s')
        wanted = {key: shape for key, shape in wanted.items() if 'backbone' in key}
    wrong = [
        k for k, s in wanted.items() if 'norm_list' not in k and shapes.get(k) != s
    ]
    return ('other', f'{wrong[:3]} are wrong') if wrong else ('converted', '')


def resume(path: Path) -> tuple[str, str]:
    """Gives a file to mmengine's loader and a small model."""
    model = torch.nn.Linear(2, 2)
    try:
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            load_checkpoint(model, str(path), map_location='cpu', logger='silent')
    except (CheckpointError, FileNotFoundError) as error:
        return 'refused', str(error)
    return 'converted', ''


def predict(path: Path) -> tuple[str, str]:
    """Gives a file to what ``tools/predict.py`` reads checkpoints with."""
    try:
        read_source(path)
    except (CheckpointError, FileNotFoundError) as error:
        return 'refused', str(error)
    return 'converted', ''


USES = {'convert': convert, 'resume': resume, 'predict': predict}
SUSPICIOUS = ('os.system', 'os.exec', 'os.posix_spawn', 'os.fork', 'subprocess.Popen')


def judge(use: Callable[[Path], tuple[str, str]], path: Path) -> tuple[str, str]:
    """Uses a file and looks at how that ends, in this process."""
    try:
        kind, text = use(path)
    except BaseException:
        return 'other', traceback.format_exc()[-1500:]
    if (path.parent / EXECUTED).exists() or Path(EXECUTED).exists():
        return 'other', 'code was executed'
    if kind == 'refused' and ('\n' in text or not 10 < len(text) < SENTENCE):
        return 'other', f'no sentence: {text[:300]!r}'
    return kind, text


def largest() -> int:
    """Bytes of memory that this process has had at its largest."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith('VmHWM'):
            return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def isolated(use: Callable[[Path], tuple[str, str]], path: Path) -> Outcome:
    """Uses a file in a process of its own, with limits."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reading)
            limit_process()
            os.chdir(path.parent)
            Path('/proc/self/clear_refs').write_text('5')  # forgets the largest so far
            before = largest()
            kind, text = judge(use, path)
            message = json.dumps([kind, text, largest() - before, time.process_time()])
        except BaseException as error:
            message = json.dumps(['other', repr(error), 0, 0])
        os.write(writing, message.encode()[:60_000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, 'rb') as pipe:
        message = pipe.read()
    _, status = os.waitpid(child, 0)
    if not message:
        name = (
            signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else '?'
        )
        return Outcome('other', f'the process ended by {name}', 0, TIME)
    return Outcome(*json.loads(message))


def limit_process() -> None:
    """Limits time and memory of this process, and starting others ends it."""
    size = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.setitimer(signal.ITIMER_PROF, TIME)

    def watch(event: str, arguments: tuple) -> None:
        if event in SUSPICIOUS:
            raise RuntimeError(f'{event}{arguments} was called')

    sys.addaudithook(watch)


def mutate(kind: str, number: int, seed: int, seeds: Seeds) -> Content:
    """The file of a kind and number, always the same."""
    return KINDS[kind](random.Random(f'{seed} {kind} {number}'), seeds)


def main(argv: list[str] | None = None) -> int:
    """Makes mutations and prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--number', type=int, default=1000, help='of files in all')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--minutes', type=float, help='ends early after so many')
    parser.add_argument('--kinds', nargs='+', choices=KINDS, default=list(KINDS))
    parser.add_argument('--uses', nargs='+', choices=USES, default=list(USES))
    parser.add_argument(
        '--whole', type=int, default=0, help='every so many from one with all values'
    )
    parser.add_argument('--keep', help='folder for files that were not survived')
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    import mmseg.models  # noqa: F401, once and not in each process

    seeds, whole = Seeds(), Seeds(whole=True) if args.whole else None
    counts: dict[str, Counter] = defaultdict(Counter)
    memory: Counter = Counter()
    slowest: Counter = Counter()
    others = []
    end = time.perf_counter() + 60 * args.minutes if args.minutes else float('inf')
    for number in range(args.number):
        if time.perf_counter() > end:
            break
        kind = args.kinds[number % len(args.kinds)]
        take_whole = whole and number // len(args.kinds) % args.whole == 0
        suffix, content = mutate(
            kind, number, args.seed, whole if take_whole else seeds
        )
        for use in args.uses:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, f'source{suffix}')
                path.write_bytes(content)
                outcome = isolated(USES[use], path)
            if (kind, outcome.kind) == ('untouched', 'refused') and use != 'resume':
                outcome = outcome._replace(kind='other')  # it is sound
            counts[kind][outcome.kind] += 1
            memory[kind] = max(memory[kind], outcome.memory)
            slowest[kind] = max(slowest[kind], outcome.time)
            if outcome.kind == 'other':
                others.append((kind, number, use, outcome.text))
                print(f'{kind} {number}, {use}: {outcome.text}', file=sys.stderr)
                if args.keep:
                    Path(args.keep, f'{kind} {number}{suffix}').write_bytes(content)
    print('| kind | tried | refused | converted or read | other | MiB | slowest s |')
    print('| --- | ---: | ---: | ---: | ---: | ---: | ---: |')
    for kind, count in counts.items():
        print(
            f'| {kind} | {count.total()} | {count["refused"]} | {count["converted"]} | '
            f'{count["other"]} | {memory[kind] >> 20} | {slowest[kind]:.1f} |'
        )
    total = sum(counts.values(), Counter())
    print(
        f'| all | {total.total()} | {total["refused"]} | {total["converted"]} | '
        f'{total["other"]} | {max(memory.values()) >> 20} | '
        f'{max(slowest.values()):.1f} |'
    )
    return 1 if others else 0


if __name__ == '__main__':
    sys.exit(main())
