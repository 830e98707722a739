"""Broken and hostile checkpoints, made from a seed.

They are checkpoints of all layouts with something changed, and pickles made by a
grammar of what PyTorch's unpickler accepts. Tensors repeat one value, so that a whole
checkpoint has a few kilobytes.
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import random
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from safetensors.torch import save

from builders import cheap_state, shapes_of
from mmseg_twins.checkpoints.pickles import allowed_names

EXECUTED = 'executed'  # a file that hostile pickles make beside the checkpoint

Random = random.Random
Content = tuple[str, bytes]  # ending of the file's name, bytes


# --- sound checkpoints, which are mutated


# Each with how often it is taken: converting a UPerNet writes 200 MB.
LAYOUTS = {
    **dict.fromkeys(('official-cls', 'official-seg', 'official-fpn'), 4),
    **dict.fromkeys(('mmseg', 'mmseg-fpn'), 4),
    **dict.fromkeys(('official-upernet', 'mmseg-upernet', 'ssseg-upernet'), 1),
}
VARIANTS = ('pcpvt-s', 'svt-s')


@cache
def state_of(layout: str, variant: str = 'svt-s') -> dict:
    return cheap_state(shapes_of(layout, variant))


def any_model(rng: Random) -> tuple[str, str]:
    (layout,) = rng.choices(list(LAYOUTS), list(LAYOUTS.values()))
    return layout, rng.choice(VARIANTS)


def any_state(rng: Random) -> dict:
    return state_of(*any_model(rng))


@cache
def sound_file(kind: str, layout: str, variant: str) -> Content:
    """A file as trainings write it; kind is one of ``FORMATS``."""
    state = state_of(layout, variant)
    if kind == 'safetensors':
        return '.safetensors', save({k: torch.zeros(2, 3) for k in list(state)[:20]})
    official = {
        'model': state,
        'optimizer': {'state': {0: {'step': 3}}, 'param_groups': [{'lr': 1e-3}]},
        'epoch': 3,
        'args': argparse.Namespace(lr=1e-3, output_dir='out'),
    }
    mmengine = {
        'meta': {'epoch': 1, 'iter': 20, 'dataset_meta': {'classes': ('a', 'b')}},
        'state_dict': OrderedDict(state),
        'message_hub': {
            'log_scalars': {'loss': HistoryBuffer([1.0, 2.0], [1, 1])},
            'runtime_info': {'iter': 20, 'best': np.float64(0.5)},
        },
    }
    content = mmengine if kind == 'mmengine' else official
    return '.pth', zipped(content, legacy=kind == 'legacy')


FORMATS = ('zip', 'mmengine', 'legacy', 'safetensors')


def zipped(content: object, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def saved(rng: Random, content: object) -> Content:
    return '.pth', zipped(content, legacy=rng.random() < 0.3)


def any_file(rng: Random) -> Content:
    return sound_file(rng.choice(FORMATS), *any_model(rng))


def wrapped(rng: Random, state: dict) -> Content:
    return saved(rng, rng.choice((state, {'model': state}, {'state_dict': state})))


def untouched(rng: Random) -> Content:
    """What has to convert: other wrappers, orders, types and harmless company."""
    state = list(any_state(rng).items())
    rng.shuffle(state)
    kind = rng.choice((torch.float16, torch.bfloat16, torch.float32))
    prefix = rng.choice(('', 'module.'))
    renamed = {
        prefix + name: tensor if tensor.dtype == torch.int64 else tensor.to(kind)
        for name, tensor in state
    }
    wrapper = rng.choice((None, 'model', 'state_dict'))
    extra = {'epoch': 3, 'args': argparse.Namespace(a=1), 'best': np.float32(3)}
    return saved(rng, {wrapper: renamed, **extra} if wrapper else renamed)


# --- the bytes of files


def spot(rng: Random, size: int) -> int:
    """A place in a file, often near its ends, where formats keep their tables."""
    near = min(size, 4000)
    places = (rng.randrange(size), rng.randrange(near), size - 1 - rng.randrange(near))
    return rng.choice(places)


def flipped_bits(rng: Random) -> Content:
    suffix, content = any_file(rng)
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        content[spot(rng, len(content))] ^= 1 << rng.randrange(8)
    return suffix, bytes(content)


def truncated(rng: Random) -> Content:
    suffix, content = any_file(rng)
    return suffix, content[: spot(rng, len(content))]


def moved_bytes(rng: Random) -> Content:
    """A stretch cut out, written twice, zeroed, or replaced by noise."""
    suffix, content = any_file(rng)
    start = spot(rng, len(content))
    end = min(start + rng.choice((1, 16, 512, 4096, 60_000)), len(content))
    piece = content[start:end]
    new = rng.choice((b'', piece * 2, bytes(len(piece)), rng.randbytes(len(piece))))
    return suffix, content[:start] + new + content[end:]


def wrong_ending(rng: Random) -> Content:
    """One format under the name of another, before or after something else."""
    content, other = any_file(rng)[1], any_file(rng)[1]
    suffix = rng.choice(('.pth', '.safetensors', '.pt', '.bin'))
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
    return archive_of(
        [
            (name, pickled if name.endswith('/data.pkl') else content)
            for name, content in parts_of(like or zipped({'a': torch.zeros(3)}))
        ]
    )


def small_archive() -> bytes:
    return zipped({'model': dict(list(state_of('official-cls').items())[:9])})


def changed_parts(rng: Random) -> Content:
    """Parts of an archive renamed, left out, doubled, emptied or in another order."""
    parts = parts_of(small_archive())
    for _ in range(rng.randint(1, 3)):
        name, content = parts.pop(rng.randrange(len(parts)))
        parts += rng.choice(
            (
                [],
                [(name, content), (name, rng.randbytes(8))],
                [(name.upper(), content), (name, content)],
                [(name, b'')],
                [(name, content * 2)],
                [(rng.choice(('../x', '/etc/x', 'x/constants.pkl')), content)],
            )
        )
        rng.shuffle(parts)
        if not parts:
            break
    return '.pth', archive_of(parts)


def claimed_sizes(rng: Random) -> Content:
    """Tables of an archive with wrong sizes, places and methods."""
    content = bytearray(small_archive())
    marks = (b'PK\x01\x02', b'PK\x03\x04', b'PK\x05\x06', b'PK\x06\x06')
    places = [i for i in range(len(content)) if content[i : i + 4] in marks]
    place, width = rng.choice(places) + 2 * rng.randrange(2, 26), rng.choice((2, 4, 8))
    most = 2 ** (8 * width)
    value = rng.choice((0, 1, 8, most - 1, rng.randrange(most)))
    content[place : place + width] = value.to_bytes(width, 'little')
    return '.pth', bytes(content)


def zip_bomb(rng: Random) -> Content:
    """An archive that unpacks to a hundred times its size and more."""
    parts = parts_of(small_archive())
    name = parts[-1][0]
    where = rng.choice((name, name.rpartition('/')[0] + '/data.pkl', 'archive/data/99'))
    parts = [part for part in parts if part[0] != where]
    size = rng.choice((10, 50, 200)) << 20
    slow = (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA) if size <= 50 << 20 else ()
    method = rng.choice((zipfile.ZIP_DEFLATED, *slow))
    return '.pth', archive_of([*parts, (where, bytes(size))], method)


# --- state dicts


def changed_names(rng: Random) -> Content:
    """Entries renamed, left out, doubled, or with names that are none."""
    state = dict(any_state(rng))
    for _ in range(rng.choice((1, 1, 3, 40))):
        name = rng.choice(list(state))
        tensor, text = state.pop(name), name if isinstance(name, str) else 'x'
        new = rng.choice(
            (
                None, text[::-1], text.replace('.', '_'), text.replace('0', '7'),
                'module.' + text, 'module.module.' + text, text + '.' * 40,
                text + '\n\x00\u2028', '\ud800' + text, 'x' * 100_000, '',
                rng.randrange(2**31), 10**300, ('a', ('b',)), b'bytes',
                text.replace('blocks', 'layers'), text + '9' * 30,
            )
        )  # fmt: skip
        if new is not None:
            state[new] = tensor
    return wrapped(rng, state)


ODD: tuple[Callable[[torch.Tensor], object], ...] = (
    torch.Tensor.to_sparse,
    lambda zeros: zeros.to(torch.complex64),
    lambda zeros: zeros.bool(),
    lambda zeros: zeros.to(torch.float8_e4m3fn),
    lambda zeros: zeros.to('meta'),
    lambda zeros: zeros[:0],
    lambda zeros: torch.tensor(float('nan')),
    lambda zeros: torch.zeros(1).expand(2**40),
    lambda zeros: torch.zeros(1).expand(2**20, 2**20, 2**10),
    torch.nn.Parameter,
    lambda zeros: None,
    lambda zeros: 3,
    lambda zeros: 'weights',
    lambda zeros: [zeros],
    lambda zeros: {'weight': zeros},
    lambda zeros: np.zeros(3),
)


def changed_tensors(rng: Random) -> Content:
    """Tensors reshaped, of other types, repeating, not finite, or no tensors."""
    state = dict(any_state(rng))
    for name in rng.sample(list(state), rng.choice((1, 1, 3, 40))):
        shape = list(state[name].shape)
        kinds = (torch.float64, torch.bfloat16, torch.int64, torch.uint8)
        match rng.randrange(6):
            case 0:
                state[name] = rng.choice(ODD)(torch.zeros(4, 4))
            case 1:
                state[name] = torch.zeros(()).expand([*shape, 1])
            case 2 if shape:
                shape[rng.randrange(len(shape))] = rng.choice((0, 1, 2**16, 2**33))
                state[name] = torch.zeros(()).expand(shape)
            case 3:
                state[name] = torch.zeros((), dtype=rng.choice(kinds)).expand(shape)
            case 4:
                value = rng.choice((float('nan'), float('inf'), 3e38, -1e30, 1e-40))
                state[name] = torch.full((), value).expand(shape)
            case _:
                state[name] = torch.zeros(()).expand(shape[::-1])
    return wrapped(rng, state)


def wide_heads(rng: Random) -> Content:
    """Heads of other widths, up to such as no memory holds."""
    old, new = rng.choice((128, 150, 256)), rng.choice((0, 1, 7, 5000, 2**17, 2**28))
    state = {}
    for name, tensor in state_of('mmseg-fpn').items():
        widened = [new if size == old else size for size in tensor.shape]
        shape = tensor.shape if name.startswith('backbone.') else widened
        state[name] = tensor.reshape(-1)[:1].squeeze().expand(shape)
    return saved(rng, {'state_dict': state})


def deep(value: object) -> dict:
    """Within as many tuples as the pickler still takes."""
    for _ in range(60):
        value = (value,)
    return {'model': {'a': value}, 'x': value}


METAS = (
    {'CLASSES': [('a',)] * 3, 'PALETTE': 3},
    {'dataset_meta': {'classes': {1: 2}, 'palette': [[1, 'x'], 3]}},
    {'dataset_meta': 3, 'CLASSES': 'abc', 'PALETTE': [[2**70] * 3]},
    [1, 2, 3],
)


def odd_structure(rng: Random) -> Content:
    """Dicts within themselves, deep nestings, wrappers and ``meta`` of other kinds."""
    state, segmentor = state_of('official-cls'), state_of('mmseg-fpn')
    itself: dict = {}
    itself['model'] = itself
    parameter = torch.nn.Parameter(torch.zeros(64))
    for name in ('detach', 'numel', 'shape_', 'untyped_storage', 'isfinite'):
        parameter.__dict__[name] = 3
    content = rng.choice(
        (
            itself,
            {'model': state, 'state_dict': state},
            deep({'model': {'model': {'model': state}}}),
            deep([state]),
            *({'meta': meta, 'state_dict': segmentor} for meta in METAS),
            *([], (), 'text', 3.5, {}, {1: 2}, {'model': 3}),
            {10**4000: 1, 'x' * 1000: 2, ('a',): 3},
            {'model_ema': state, 'state_dict_ema': 3},
            torch.zeros(1).expand(2**40),
            {'model': {**state, 'blocks.0.0.norm1.bias': parameter}},
            {'model': {str(i): torch.zeros(1) for i in range(5000)}},
        )
    )
    return saved(rng, content)


# --- pickles

# Those that PyTorch's unpickler knows, and some that it does not.
OPCODES = b'\x81RbaeSsu(t\x85\x86\x87N\x89\x88)]}\x8fJKMGXU.Qhjqr\x8ac0iol\x93\x94'
ALLOWED = sorted(
    ' '.join(name.rsplit('.', 1)) for name in allowed_names() if '\n' not in name
)


def named(text: str) -> bytes:
    """The opcode for a global, given as ``'module name'``."""
    return b'c' + text.replace(' ', '\n').encode() + b'\n'


def string(value: str) -> bytes:
    encoded = value.encode()
    return b'X' + struct.pack('<I', len(encoded)) + encoded


def integer(value: int) -> bytes:
    encoded = pickle.encode_long(value)
    return b'\x8a' + bytes([len(encoded)]) + encoded


def call(name: str, *arguments: bytes) -> bytes:
    """A call of a global with arguments."""
    return named(name) + b'(' + b''.join(arguments) + b'tR'


def storage(rng: Random) -> bytes:
    """A tensor with a storage, size, strides and offset that may not fit together."""
    values = (0, 1, 2, 3, 100, -1, 2**31, 2**62)

    def numbers() -> bytes:
        return b'(' + b''.join(integer(rng.choice(values)) for _ in range(2)) + b't'

    kept = b'(' + string('storage') + named('torch FloatStorage') + string('0')
    kept += string('cpu') + integer(rng.choice((0, 3, 2**40, -1))) + b'tQ'
    offset = integer(rng.choice((0, 1, -1, 2**40)))
    hooks = call('collections OrderedDict')
    shape = (offset, numbers(), numbers(), b'\x89', hooks)
    return call('torch._utils _rebuild_tensor_v2', kept, *shape)


def value_soup(rng: Random, depth: int = 0) -> bytes:
    """A random value out of what PyTorch's unpickler accepts, calls included."""
    numbers = (0, 1, -1, 3, 64, 2**16, 2**33, -(2**40), 2**62)
    floats = (0.0, -1.5, 1e300, float('nan'))
    words = ('', 'f8', '<f8', 'O', 'storage', 'cpu', 'latin1')
    leaves = (
        lambda: rng.choice((b'N', b'\x88', b'\x89', b')', b']', b'}')),
        lambda: integer(rng.choice(numbers)),
        lambda: b'G' + struct.pack('>d', rng.choice(floats)),
        lambda: string(rng.choice(words)),
        lambda: b'U' + bytes([4]) + rng.randbytes(4),
        lambda: named(rng.choice(ALLOWED)),
        lambda: storage(rng),
    )
    if depth == 4 or rng.random() < 0.5:
        return rng.choice(leaves)()
    inner = [value_soup(rng, depth + 1) for _ in range(rng.randrange(4))]
    joined, owner = b''.join(inner), named(rng.choice(ALLOWED))
    made = rng.choice((b'R', b'R', b'\x81'))
    return rng.choice(
        (
            b'(' + joined + b't',
            b'](' + joined + b'e',
            *[owner + b'(' + joined + b't' + made] * 3,
            owner + b')' + made + (inner[0] if inner else b'}') + b'b',
        )
    )


def flipped_pickle(rng: Random) -> Content:
    """Bytes of the pickle changed in an archive whose checksums are right."""
    kind = rng.choice(('zip', 'mmengine'))
    like = sound_file(kind, *any_model(rng))[1]
    pickled = bytearray(next(c for n, c in parts_of(like) if n.endswith('/data.pkl')))
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.choice((rng.randrange(len(pickled)), rng.randrange(300)))
        match rng.randrange(3):
            case 0:
                pickled[place] ^= 1 << rng.randrange(8)
            case 1:
                pickled[place] = rng.choice(OPCODES)
            case _:
                del pickled[place : place + rng.choice((1, 4, 30))]
    return '.pth', with_pickle(bytes(pickled), like)


def in_file(rng: Random, pickled: bytes) -> Content:
    """A pickle in an archive or bare."""
    return '.pth', pickled if rng.random() < 0.3 else with_pickle(pickled)


def pickle_soup(rng: Random) -> Content:
    """Random calls of all that PyTorch allows, with random arguments."""
    values = (string(f'k{i}') + value_soup(rng) for i in range(rng.randint(1, 5)))
    return '.pth', with_pickle(b'\x80\x02}(' + b''.join(values) + b'u.')


def opcode_soup(rng: Random) -> Content:
    """Random opcodes and values."""
    pieces = [
        bytes([rng.choice(OPCODES)]) if rng.random() < 0.7 else value_soup(rng, 2)
        for _ in range(rng.randrange(60))
    ]
    start = rng.choice((b'', b'}'))
    return in_file(rng, b'\x80\x02' + start + b''.join(pieces) + b'.')


def bomb(rng: Random) -> Content:
    """A few bytes that would overflow the stack, take all memory, or never end."""
    many = rng.choice((200, 20_000, 2_000_000))
    encode = named('_codecs encode')
    kept = b'(' + string('storage') + named('torch FloatStorage') + string('0')
    repeated = call(
        'torch._utils _rebuild_tensor_v2', kept + string('cpu') + b'K\x03tQ', b'K\x00',
        b'(' + integer(2**35) + b't', b'(K\x00t', b'\x89',
        call('collections OrderedDict'),
    )  # fmt: skip
    value = rng.choice(
        (
            b')' + b'\x85' * many,  # tuples within tuples
            b']' * many + b'a' * (many - 1),
            (b'}' + string('k')) * many + b'}' + b's' * many,
            call('builtins bytearray', integer(2**36)),
            call('torch Tensor', integer(2**36)),
            call('torch.storage UntypedStorage', integer(2**38)),
            # one long string encoded over and over
            b'](' + string('x' * 1_000_000) + b'q\x01'
            + (encode + b'(h\x01' + string('utf-32') + b'tR') * 6000 + b'e',
            b')' + b'q\x01h\x01\x86' * 90,  # a billion laughs
            call(
                'numpy._core.multiarray _reconstruct', named('numpy ndarray'),
                b'(' + integer(2**33) + b't', string('O'),
            ),
            call(
                'torch._utils _rebuild_device_tensor_from_cpu_tensor', repeated,
                named('torch float64'), string('cpu'), b'\x89',
            ),
        )
    )  # fmt: skip
    entry = value + b'K\x01' if rng.random() < 0.5 else string('x') + value
    return in_file(rng, b'\x80\x02}(' + entry + b'u.')


def code(rng: Random) -> Content:
    """Pickles that want to run something, each of which would leave a file."""
    shell, python = string(f'touch {EXECUTED}'), string(f'open({EXECUTED!r}, "w")')
    system, file = named('os system'), string(EXECUTED)
    history = named('mmengine.logging.history_buffer HistoryBuffer')
    hostile = rng.choice(
        (
            *(call(f'{os_} system', shell) for os_ in ('os', 'posix', 'nt')),
            call('builtins eval', python),
            call('__builtin__ eval', python),
            call('builtins exec', python),
            call('builtins open', file, string('w')),
            call('subprocess call', b'](' + string('touch') + file + b'e'),
            call('numpy.testing._private.utils runstring', python, b'}'),
            call(
                'torch._utils _rebuild_from_type_v2', system, named('torch Tensor'),
                shell + b'\x85', b'}',
            ),
            call('builtins getattr', system, string('__call__')) + shell + b'\x85R',
            call('builtins getattr', history, string('__globals__')),
            named('numpy ndarray') + b')\x81' + file + b'b',
            b'(' + shell + b'ios\nsystem\n',
            b'(' + system + shell + b'o',
            string('os') + string('system') + b'\x93' + shell + b'\x85R',
            *(call(f'torch{module} load', shell) for module in ('', '.hub', '.jit')),
            call('mmengine.config Config'),
            call('pathlib Path', file),
            call('functools partial', system, shell) + b')R',
            call('argparse FileType', string('w')) + file + b'\x85R',
            call('collections OrderedDict.fromkeys'),
            b'\x82\x01' + shell + b'\x85R',
        )
    )  # fmt: skip
    protocol = rng.choice((b'\x80\x02', b'\x80\x04', b'\x80\x05', b''))
    bodies = (b'}(' + string('x') + hostile + b'u', hostile, b'}' + hostile + b'K\x01s')
    pickled = protocol + rng.choice(bodies) + b'.'
    if rng.random() < 0.2:  # after a sound beginning of the legacy format
        sound = zipped({'a': 1}, legacy=True)
        return '.pth', sound[: sound.rindex(b'\x80\x02}')] + pickled
    return in_file(rng, pickled)


# --- safetensors


def safetensors_header(rng: Random) -> Content:
    """Headers with other types, shapes and places, with odd JSON, or cut."""
    content = sound_file('safetensors', 'official-cls', 'svt-s')[1]
    (length,) = struct.unpack('<Q', content[:8])
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    entry = header[rng.choice([key for key in header if key != '__metadata__'])]
    metas = ('[' * 100_000, '{', '3', '[1]', '{"a": NaN}')
    values = {
        'dtype': ('F64', 'I8', 'F8_E4M3', 'X', '', 3, None),
        'shape': ([2**40], [], [-1], [2**62, 2**62], 'x', [0, 3]),
        'data_offsets': ([0, 2**60], [5, 0], [-1, 3], [], [0, 4], [10**30, 10**31]),
        '__metadata__': (*({'meta': text} for text in metas), 3, [], {'a': 3}, None),
        'x' * 1000: (dict(entry), {}),
        '\ud800': (dict(entry),),
    }
    key = rng.choice(list(values))
    (entry if key in entry else header)[key] = rng.choice(values[key])
    encoded = rng.choice((*[json.dumps(header).encode()] * 8, b'{}'))
    if rng.random() < 0.15:
        encoded = b'{"a":' * 20_000 + b'1' + b'}' * 20_000
    length = len(encoded)
    if rng.random() < 0.15:
        length = rng.choice((0, 1, 2**63, 2**64 - 1, length + 10, length - 10)) % 2**64
    return '.safetensors', struct.pack('<Q', length) + encoded + body


KINDS: dict[str, Callable[[Random], Content]] = {
    kind.__name__.replace('_', ' '): kind
    for kind in (
        untouched, flipped_bits, truncated, moved_bytes, wrong_ending, changed_parts,
        claimed_sizes, zip_bomb, changed_names, changed_tensors, wide_heads,
        odd_structure, flipped_pickle, pickle_soup, opcode_soup, bomb, code,
        safetensors_header,
    )
}  # fmt: skip


def mutate(kind: str, number: int, seed: int) -> Content:
    """The file of a kind and number, always the same."""
    return KINDS[kind](Random(f'{seed} {kind} {number}'))
