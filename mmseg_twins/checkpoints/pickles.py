"""What PyTorch's unpickler may do with a checkpoint's pickles, and what it may not.

``torch.load(weights_only=True)`` runs no code of a file, but two things are missing.

It refuses the classes that mmengine's checkpoints hold: training curves as
``HistoryBuffer`` with numpy arrays. :func:`allow_harmless_classes` admits these and
nothing else.

And a few bytes can still crash it or fill the memory: a deep enough tuple as a key
overflows the interpreter's stack, ``bytearray(10**10)`` is allowed, and so is encoding
one long string a million times. :func:`screen` goes through a file's opcodes without
making the objects that they stand for, and refuses what no training writes. Of each
object it follows how deeply its tuples nest and how large it is.
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
# What a tuple, and the arguments of all calls, may hold together, repetitions included:
# so often the pickle's own length, and a sum that does no harm in any file.
MAX_COPIES = 8
FREE_COPIES = 1 << 20
MAX_OPCODES = 1_000_000  # in a pickle; those of trainings have less than 100 000
LEGACY_PICKLES = 5  # what stands before the tensors in a file that is no zip archive

# Names that PyTorch allows and no checkpoint of weights needs: they take as much memory
# as a number in the file says.
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


def screen(path: Path) -> set[str]:
    """Go through the pickles of a file of PyTorch's, in the zip or the older format.

    Returns:
        The names that they refer to, such as ``'torch.FloatStorage'``.

    Raises:
        UnpicklingError: they would take too much stack or memory, or the archive is
            not as PyTorch writes it.
        ValueError: a pickle is damaged.
        Exception: PyTorch's own, for an archive that it cannot open.
    """
    if is_archive(path):
        screen_archive(path)
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


def is_archive(path: Path) -> bool:
    """Return whether a file is read as a zip archive: PyTorch goes by how it begins."""
    with path.open('rb') as file:
        return file.read(len(ZIP_MAGIC)) == ZIP_MAGIC


def screen_archive(path: Path) -> None:
    """Check that an archive has stored parts of different names, as PyTorch writes it.

    Raises:
        UnpicklingError: it does not.
        zipfile.BadZipFile: it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    # PyTorch finds parts whatever the case of their names.
    if len({part.filename.lower() for part in parts}) < len(parts):
        raise UnpicklingError('two parts of the archive have the same name')
    # It maps parts into memory and would take compressed ones for tensors.
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise UnpicklingError('the archive is compressed, which checkpoints are not')
    if sum(part.file_size for part in parts) > path.stat().st_size:
        raise UnpicklingError('the parts of the archive are larger than the file')


def screen_pickle(file: BinaryIO, length: int) -> set[str]:
    """Go through the next pickle of a file; return the names that it refers to.

    Args:
        file: stands at the pickle's beginning, and at its end afterwards.
        length: bytes that the pickle has at most.

    Raises:
        UnpicklingError: it would take too much stack or memory.
        ValueError: it is damaged.
    """
    screening = _Screening(MAX_COPIES * length + FREE_COPIES)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count == MAX_OPCODES:
            raise UnpicklingError(f'it takes more than {MAX_OPCODES} steps to read')
        screening.step(opcode, argument)
    return screening.names


class _Item:
    """Something on the stack: how deeply its tuples nest, its size, and its text."""

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
        """Follow one opcode."""
        if opcode.name in STORE:
            if not self.stack or self.stack[-1] is None:
                raise ValueError('a pickle remembers what it does not have')
            key = len(self.memo) if opcode.name == 'MEMOIZE' else argument
            self.memo[key] = self.stack[-1]
        elif opcode.name in FETCH:
            if argument not in self.memo:
                raise ValueError('a pickle refers to what it has not remembered')
            self.stack.append(self.memo[argument])
        elif opcode.name == 'MARK':
            self.stack.append(None)
        else:
            self.work(opcode, argument, self.take(opcode))

    def work(
        self, opcode: pickletools.OpcodeInfo, argument, taken: list[_Item]
    ) -> None:
        """Follow an opcode that makes something of what it takes from the stack."""
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
            self.check(size)  # what repeats itself would be hashed as often
            self.stack.append(_Item(depth, size))
        elif opcode.name in EXTEND:
            # The container stays the one that the memo may have.
            taken[0].size = size
            self.stack.append(taken[0])
        else:
            text = argument if isinstance(argument, str) else ''
            if isinstance(argument, (str, bytes)):
                size += len(argument)
            self.stack += [_Item(size=size, text=text) for _ in opcode.stack_after]

    def take(self, opcode: pickletools.OpcodeInfo) -> list[_Item]:
        """Take from the stack what an opcode works on."""
        wanted = opcode.stack_before
        taken: list[_Item] = []
        if pickletools.markobject in wanted:
            while self.stack and (item := self.stack[-1]) is not None:
                taken.append(item)
                self.stack.pop()
            if not self.stack:
                raise ValueError('a pickle ends a group that it has not begun')
            self.stack.pop()
            wanted = wanted[: wanted.index(pickletools.markobject)]
        for _ in wanted:
            item = self.stack.pop() if self.stack else None
            if item is None:
                raise ValueError('a pickle takes more than it has')
            taken.append(item)
        return taken[::-1]

    def refer(self, name: str) -> None:
        """Note a name, unless it is refused at once."""
        module, _, rest = name.partition('.')
        name = f'{IMPORT_MAPPING.get(module, module)}.{rest}'  # as Python 3 calls it
        if name.rpartition('.')[2] in GREEDY:
            raise UnpicklingError(f'a checkpoint asks for {name}, which is refused')
        self.names.add(name)

    def check(self, size: int) -> None:
        """Refuse what is far larger than the file that it comes from."""
        if size > self.allowed:
            raise UnpicklingError('it repeats the same content over and over')


def allowed_names() -> set[str]:
    """Return the names that PyTorch's restricted unpickler knows at the moment."""
    unpickler = torch._weights_only_unpickler
    return {
        *unpickler._get_allowed_globals(),
        *unpickler._get_user_allowed_globals(),
    }


def allow_harmless_classes() -> None:
    """Add what mmengine's checkpoints hold to PyTorch's list of safe globals."""
    functions: dict[str, Callable] = {'_reconstruct': empty_array, 'scalar': number}
    # States are given to objects of these classes only. The names are none that a
    # pickle can ask for, so that it cannot call the classes.
    types = {
        type(dtype)
        for dtype in map(np.dtype, np.typecodes['All'])
        if dtype.kind in NUMBERS
    }
    stateful: list[type] = [np.ndarray, *types]
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            (statistic, 'builtins.getattr'),
            (numeric_type, 'numpy.dtype'),
            (array_class, 'numpy.ndarray'),
            *((kind, f'{kind.__name__}\n') for kind in stateful),
            # numpy 1 and 2 write these under different module names.
            *(
                (function, f'numpy.{core}.multiarray.{name}')
                for core in ('core', '_core')
                for name, function in functions.items()
            ),
        ]
    )


def statistic(owner: type, name: str) -> Callable:
    """Answer the ``getattr`` by which HistoryBuffer's pickle finds its methods.

    Raises:
        UnpicklingError: anything but HistoryBuffer's own statistics is asked for.
    """
    if owner is not HistoryBuffer or name not in STATISTICS:
        raise UnpicklingError(
            f'a checkpoint asks for attribute {name!r} of {owner!r}, which is refused'
        )
    return getattr(HistoryBuffer, name)


def numeric_type(name: str, align: bool = False, copy: bool = False) -> np.dtype:
    """Answer for ``numpy.dtype`` in a pickle: one of numpy's own types of numbers.

    A copy of a type, or one of objects or structures, could be given a state that makes
    numpy take bytes of the file for pointers. numpy's own types take no state.

    Args:
        name: such as ``'f8'``.
        align: not used.
        copy: not used.

    Raises:
        UnpicklingError: it is a type of something else.
    """
    name = name.decode('ascii') if isinstance(name, bytes) else name
    dtype = np.dtype(name) if isinstance(name, str) else None
    if dtype is None or dtype.kind not in NUMBERS or not dtype.isnative:
        raise UnpicklingError(
            f'a checkpoint asks for numpy data of type {name!r}; those of numbers are '
            'read'
        )
    return np.dtype(dtype.type)


def array_class() -> None:
    """Answer for ``numpy.ndarray`` in a pickle, which names it and never calls it.

    Raises:
        UnpicklingError: it does.
    """
    raise UnpicklingError('a checkpoint calls numpy.ndarray, which is refused')


def empty_array(cls: Callable, shape: tuple, name: bytes) -> np.ndarray:
    """Answer for ``_reconstruct``, by which a pickle begins an array.

    What the array holds, and of which shape and type, comes in its state.
    """
    return np.empty(0)


def number(dtype: np.dtype, content: bytes) -> np.generic:
    """Answer for ``scalar``, by which a pickle makes one of numpy's numbers.

    Raises:
        UnpicklingError: the bytes are not those of one.
    """
    if (
        not isinstance(dtype, np.dtype)
        or dtype.kind not in NUMBERS
        or not isinstance(content, bytes)
        or len(content) != dtype.itemsize
    ):
        raise UnpicklingError('a checkpoint holds a damaged number of numpy')
    return np.frombuffer(content, dtype)[0]
