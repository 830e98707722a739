"""Make ``torch.load(weights_only=True)`` work with mmengine's files, and make it safer.

It runs no code in a file, but it has two shortcomings.

It refuses the classes in mmengine's checkpoints: training curves as ``HistoryBuffer``
with numpy arrays. :func:`allow_harmless_classes` allows these and nothing else.

And a few bytes can still crash it or exhaust the memory: a deeply nested tuple as a key
overflows the interpreter's stack, ``bytearray(10**10)`` is allowed, and so is encoding
one long string a million times. :func:`screen` interprets a file's opcodes without
creating the objects, tracks the nesting of tuples and the size of each object, and
refuses what no training writes.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from _compat_pickle import IMPORT_MAPPING
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import BinaryIO

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

ZIP_MAGIC = b'PK\x03\x04'
MAX_DEPTH = 100  # tuples within tuples; checkpoints have less than ten
# The size of a tuple, and of the arguments of all calls together, counting repetitions,
# is limited to this many times the pickle's length, plus a harmless constant.
MAX_COPIES = 8
FREE_COPIES = 1 << 20
MAX_OPCODES = 1_000_000  # in a pickle; those of trainings have less than 100 000
LEGACY_PICKLES = 5  # pickles before the tensors, in a file of the legacy format

# Names that PyTorch allows and that no checkpoint of weights needs: they allocate as
# much memory as the file asks for.
GREEDY = frozenset(
    {
        'bytearray',
        '_rebuild_device_tensor_from_cpu_tensor',
        '_rebuild_device_tensor_from_numpy',
        '_rebuild_nested_tensor',
        '_rebuild_wrapper_subclass',
    }
)

STATISTICS = ('min', 'max', 'mean', 'current')
NUMBERS = 'biufc'  # numpy's kinds of types: booleans, integers, floats, complex

STORE = ('BINPUT', 'LONG_BINPUT', 'PUT', 'MEMOIZE')
FETCH = ('BINGET', 'LONG_BINGET', 'GET')
CALL = ('REDUCE', 'NEWOBJ', 'NEWOBJ_EX', 'INST', 'OBJ', 'BUILD')
EXTEND = ('APPEND', 'APPENDS', 'SETITEM', 'SETITEMS', 'ADDITEMS')


def screen(path: Path, *, checksums: bool = False) -> set[str]:
    """Screen the pickles of a PyTorch file, in the zip or the legacy format.

    Args:
        checksums: whether to compare the checksums of an archive's parts.

    Returns:
        The names that the pickles refer to, such as ``'torch.FloatStorage'``.

    Raises:
        UnpicklingError: they would take too much stack or memory, or the archive is
            not as PyTorch writes it.
        ValueError: a pickle is damaged.
        Exception: Python's and PyTorch's own, for an archive that they cannot open.
    """
    with path.open('rb') as file:
        is_archive = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC  # as PyTorch decides
    if is_archive:
        screen_archive(path, checksums=checksums)
        content = torch._C.PyTorchFileReader(str(path)).get_record('data.pkl')
        return screen_pickle(io.BytesIO(content), len(content))
    names: set[str] = set()
    size = path.stat().st_size
    with path.open('rb') as file:
        for _ in range(LEGACY_PICKLES):
            if file.tell() == size:
                break
            names |= screen_pickle(file, size)
    return names


def screen_archive(path: Path, *, checksums: bool) -> None:
    """Check that an archive's parts are uncompressed and have different names.

    Raises:
        UnpicklingError: it is not.
        zipfile.BadZipFile: it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        names = [part.filename for part in parts]
        if not any(name.rpartition('/')[2] == 'data.pkl' for name in names):
            raise UnpicklingError('a zip archive without data.pkl')
        # PyTorch ignores the case of their names.
        if len({name.lower() for name in names}) < len(names):
            raise UnpicklingError('two parts of the archive have the same name')
        # PyTorch maps parts into memory and would take compressed data for tensors.
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise UnpicklingError('the archive is compressed; checkpoints are not')
        if sum(part.file_size for part in parts) > path.stat().st_size:
            raise UnpicklingError('the parts of the archive are larger than the file')
        damaged = archive.testzip() if checksums else None
        if damaged is not None:
            raise UnpicklingError(f'its part {damaged} does not match its checksum')


def screen_pickle(file: BinaryIO, length: int) -> set[str]:
    """Screen the next pickle of a file; return the names that it refers to.

    Args:
        file: positioned at the pickle's beginning, and at its end afterwards.
        length: an upper bound of the pickle's length, in bytes.
    """
    screening = _Screening(MAX_COPIES * length + FREE_COPIES)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count == MAX_OPCODES:
            raise UnpicklingError(f'it takes more than {MAX_OPCODES} steps to read')
        screening.step(opcode, argument)
    return screening.names


class _Item:
    """An object on the stack: the nesting depth of its tuples, its size, its text."""

    __slots__ = ('depth', 'size', 'text')

    def __init__(self, depth: int = 0, size: int = 1, text: str = '') -> None:
        self.depth, self.size, self.text = depth, size, text


class _Screening:
    """An unpickler's stack and memo, without the objects."""

    def __init__(self, allowed: int) -> None:
        self.stack: list[_Item | None] = []  # None is a mark
        self.memo: dict[int, _Item] = {}
        self.names: set[str] = set()
        self.allowed = allowed
        self.copies = 0

    def step(self, opcode: pickletools.OpcodeInfo, argument) -> None:
        """Interpret one opcode."""
        if opcode.name in STORE:
            if not self.stack or self.stack[-1] is None:
                raise ValueError('a pickle stores something in the memo that it lacks')
            key = len(self.memo) if opcode.name == 'MEMOIZE' else argument
            self.memo[key] = self.stack[-1]
        elif opcode.name in FETCH:
            if argument not in self.memo:
                raise ValueError('a pickle refers to something that is not in its memo')
            self.stack.append(self.memo[argument])
        elif opcode.name == 'MARK':
            self.stack.append(None)
        else:
            self.work(opcode, argument, self.take(opcode))

    def work(
        self, opcode: pickletools.OpcodeInfo, argument, taken: list[_Item]
    ) -> None:
        """Interpret an opcode that makes an object of the items that it takes."""
        size = 1 + sum(item.size for item in taken)
        if opcode.name in ('GLOBAL', 'INST'):
            self.refer(argument.replace(' ', '.'))
        elif opcode.name == 'STACK_GLOBAL':
            self.refer('.'.join(item.text for item in taken))
        if opcode.name in CALL:
            self.copies += size
            self.check(self.copies)
        if opcode.name.startswith('TUPLE'):
            depth = 1 + max((item.depth for item in taken), default=0)
            if depth > MAX_DEPTH:
                raise UnpicklingError(f'more than {MAX_DEPTH} tuples are nested in it')
            self.check(size)  # hashing a key visits every repetition
            self.stack.append(_Item(depth, size))
        elif opcode.name in EXTEND:
            # The memo may hold the container, so its item is updated.
            taken[0].size = size
            self.stack.append(taken[0])
        else:
            text = argument if isinstance(argument, str) else ''
            if isinstance(argument, (str, bytes)):
                size += len(argument)
            self.stack += [_Item(size=size, text=text) for _ in opcode.stack_after]

    def take(self, opcode: pickletools.OpcodeInfo) -> list[_Item]:
        """Take an opcode's arguments from the stack."""
        wanted = opcode.stack_before
        taken: list[_Item] = []
        if pickletools.markobject in wanted:
            while self.stack and (item := self.stack[-1]) is not None:
                taken.append(item)
                self.stack.pop()
            if not self.stack:
                raise ValueError('a pickle ends a group that has not begun')
            self.stack.pop()
            wanted = wanted[: wanted.index(pickletools.markobject)]
        for _ in wanted:
            item = self.stack.pop() if self.stack else None
            if item is None:
                raise ValueError('a pickle takes more from its stack than there is')
            taken.append(item)
        return taken[::-1]

    def refer(self, name: str) -> None:
        """Record a name, unless it is refused at once."""
        module, _, rest = name.partition('.')
        name = f'{IMPORT_MAPPING.get(module, module)}.{rest}'  # as Python 3 calls it
        if name.rpartition('.')[2] in GREEDY:
            raise UnpicklingError(f'it refers to {name}, which is refused')
        self.names.add(name)

    def check(self, size: int) -> None:
        """Refuse objects far larger than the file that they come from."""
        if size > self.allowed:
            raise UnpicklingError('it repeats the same content over and over')


def allowed_names() -> set[str]:
    """Return the names that PyTorch's restricted unpickler currently allows."""
    unpickler = torch._weights_only_unpickler
    return {
        *unpickler._get_allowed_globals(),
        *unpickler._get_user_allowed_globals(),
    }


def allow_harmless_classes() -> None:
    """Add what mmengine's checkpoints hold to PyTorch's list of safe globals."""
    # PyTorch sets the state of objects of these classes only. A pickle cannot ask for
    # names that end like this, and so cannot call the classes.
    kinds = map(np.dtype, np.typecodes['All'])
    stateful: set[type] = {
        np.ndarray,
        *(type(kind) for kind in kinds if kind.kind in NUMBERS),
    }
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            (statistic, 'builtins.getattr'),
            (numeric_type, 'numpy.dtype'),
            (array_class, 'numpy.ndarray'),
            *((kind, f'{kind.__name__}\n') for kind in stateful),
            # numpy 1 and 2 write these under different module names.
            (empty_array, 'numpy.core.multiarray._reconstruct'),
            (empty_array, 'numpy._core.multiarray._reconstruct'),
            (number, 'numpy.core.multiarray.scalar'),
            (number, 'numpy._core.multiarray.scalar'),
        ]
    )


# These stand in for the functions that pickles of HistoryBuffer and of numpy's numbers
# call, and raise UnpicklingError for all that such pickles do not need.


def statistic(owner: type, name: str) -> Callable:
    """Replace ``getattr``, by which HistoryBuffer's pickle finds its statistics."""
    if owner is not HistoryBuffer or name not in STATISTICS:
        raise UnpicklingError(
            f'it refers to attribute {name!r} of {owner!r}, which is refused'
        )
    return getattr(HistoryBuffer, name)


def numeric_type(name: str, align: bool = False, copy: bool = False) -> np.dtype:
    """Replace ``numpy.dtype``, and return one of numpy's own numeric types.

    A copy of a type, or a type of objects or structures, could be given a state that
    makes numpy take bytes of the file for pointers. numpy's own types take no state.
    """
    name = name.decode('ascii') if isinstance(name, bytes) else name
    dtype = np.dtype(name) if isinstance(name, str) else None
    if dtype is None or dtype.kind not in NUMBERS or not dtype.isnative:
        raise UnpicklingError(
            f'it refers to numpy data of type {name!r}, but only numbers are allowed'
        )
    return np.dtype(dtype.type)


def array_class() -> None:
    """Replace ``numpy.ndarray``, which pickles refer to but never call."""
    raise UnpicklingError('it calls numpy.ndarray, which is refused')


def empty_array(cls: Callable, shape: tuple, name: bytes) -> np.ndarray:
    """Replace ``_reconstruct``; shape, type and values come in the array's state."""
    return np.empty(0)


def number(dtype: np.dtype, content: bytes) -> np.generic:
    """Replace ``scalar``, by which a pickle makes one of numpy's numbers."""
    if (
        not isinstance(dtype, np.dtype)
        or dtype.kind not in NUMBERS
        or not isinstance(content, bytes)
        or len(content) != dtype.itemsize
    ):
        raise UnpicklingError('it holds a damaged numpy number')
    return np.frombuffer(content, dtype)[0]
