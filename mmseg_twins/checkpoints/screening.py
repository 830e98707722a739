"""Looks through a checkpoint's pickles before they are unpickled.

``torch.load(weights_only=True)`` runs no code of a file, but a few bytes can still
make it fall or fill the memory: a deep enough tuple as a key overflows the stack of
the interpreter, ``bytearray(10**10)`` is allowed, and so is encoding one long string a
million times. What is refused here stands in no checkpoint that a training writes.

The opcodes are followed without making the objects that they stand for: of each, only
how deeply its tuples nest and how large it is.
"""

from __future__ import annotations

import io
import os
import pickletools
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import BinaryIO

import torch

ZIP_MAGIC = b'PK\x03\x04'
MAX_DEPTH = 100  # tuples within tuples; checkpoints have less than ten
# What a tuple, and the arguments of all calls, may hold together, repetitions included:
# so often the pickle's own length, and a sum that is no harm in any file.
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


def screen(path: str | os.PathLike) -> None:
    """Looks through a file of PyTorch's, in the zip format or the one before it.

    Args:
        path: the file.

    Raises:
        UnpicklingError: it holds what would take too much stack or memory, or its
            archive is none that PyTorch writes.
        ValueError: a pickle in it is damaged.
        Exception: PyTorch's own, for an archive that it cannot open.
    """
    path = Path(path)
    if is_archive(path):
        screen_archive(path)
        content = torch._C.PyTorchFileReader(str(path)).get_record('data.pkl')
        screen_pickle(io.BytesIO(content), len(content))
        return
    size = path.stat().st_size
    with path.open('rb') as file:
        for _ in range(LEGACY_PICKLES):
            if file.tell() == size:
                return
            screen_pickle(file, size)


def is_archive(path: Path) -> bool:
    """Whether a file is read as a zip archive: PyTorch goes by how it begins."""
    with path.open('rb') as file:
        return file.read(len(ZIP_MAGIC)) == ZIP_MAGIC


def screen_archive(path: Path) -> None:
    """Checks that an archive is as PyTorch writes it: of stored parts of unequal names.

    Raises:
        UnpicklingError: it is not.
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


class _Item:
    """What stands on an unpickler's stack: nesting of its tuples, and its size."""

    __slots__ = ('depth', 'size')

    def __init__(self, depth: int = 0, size: int = 1) -> None:
        self.depth = depth
        self.size = size


def screen_pickle(file: BinaryIO, length: int) -> None:
    """Looks through the next pickle of a file.

    Args:
        file: stands at the pickle's beginning, and at its end afterwards.
        length: bytes that the pickle has, or at most has.

    Raises:
        UnpicklingError: it would take too much stack or memory.
        ValueError: it is damaged.
    """
    stack: list[_Item | None] = []  # None is a mark
    memo: dict[int, _Item] = {}
    copies, allowed = 0, MAX_COPIES * length + FREE_COPIES
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count == MAX_OPCODES:
            raise UnpicklingError(f'it takes more than {MAX_OPCODES} steps to read')
        name = opcode.name
        if name in ('BINPUT', 'LONG_BINPUT', 'PUT', 'MEMOIZE'):
            if not stack or stack[-1] is None:
                raise ValueError('a pickle remembers what it does not have')
            memo[len(memo) if name == 'MEMOIZE' else argument] = stack[-1]
            continue
        if name in ('BINGET', 'LONG_BINGET', 'GET'):
            if argument not in memo:
                raise ValueError('a pickle refers to what it has not remembered')
            stack.append(memo[argument])
            continue
        if name == 'MARK':
            stack.append(None)
            continue
        if name in ('GLOBAL', 'INST') and argument.rpartition(' ')[2] in GREEDY:
            raise UnpicklingError(
                f'a checkpoint asks for {argument.replace(" ", ".")}, which is refused'
            )
        taken = _take(stack, opcode)
        size = 1 + sum(item.size for item in taken)
        if name in ('REDUCE', 'NEWOBJ', 'NEWOBJ_EX', 'INST', 'OBJ', 'BUILD'):
            copies += size
            if copies > allowed:
                raise UnpicklingError('it repeats the same content over and over')
        if name.startswith('TUPLE'):
            depth = 1 + max((item.depth for item in taken), default=0)
            if depth > MAX_DEPTH:
                raise UnpicklingError(f'more than {MAX_DEPTH} tuples are nested in it')
            if size > allowed:  # what repeats itself would be hashed as often
                raise UnpicklingError('it repeats the same content over and over')
            stack.append(_Item(depth, size))
        elif name in ('APPEND', 'APPENDS', 'SETITEM', 'SETITEMS', 'ADDITEMS'):
            # The container stays the one that the memo may have.
            taken[0].size = size
            stack.append(taken[0])
        else:
            if isinstance(argument, (str, bytes)):
                size += len(argument)
            stack += [_Item(size=size) for _ in opcode.stack_after]


def _take(stack: list[_Item | None], opcode: pickletools.OpcodeInfo) -> list[_Item]:
    """Takes from a stack what an opcode works on.

    Raises:
        ValueError: it is not there.
    """
    wanted = opcode.stack_before
    taken: list[_Item] = []
    if pickletools.markobject in wanted:
        while stack and stack[-1] is not None:
            taken.append(stack.pop())
        if not stack:
            raise ValueError('a pickle ends a group that it has not begun')
        stack.pop()
        wanted = wanted[: wanted.index(pickletools.markobject)]
    for _ in wanted:
        if not stack or stack[-1] is None:
            raise ValueError('a pickle takes more than it has')
        taken.append(stack.pop())
    return taken[::-1]
