"""Arguments that measurements have in common."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from benchmarking.errors import BenchmarkError
from mmseg_twins.checkpoints.writing import check_writable

PICTURES = ('.png', '.svg', '.pdf')


def add_output_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds what says where a measurement goes; returns their group."""
    output = parser.add_argument_group('output')
    output.add_argument(
        '--markdown', action='store_true', help='print the table as Markdown'
    )
    output.add_argument(
        '--json',
        type=output_file('.json'),
        metavar='FILE',
        help='write everything that was measured, each run included',
    )
    output.add_argument(
        '--plot',
        type=output_file(*PICTURES),
        metavar='FILE',
        help=f'draw it; FILE ends in {", ".join(PICTURES)}',
    )
    output.add_argument(
        '--force', action='store_true', help='replace output files that exist'
    )
    return output


def described(table: dict[str, str]) -> str:
    """Names with what they mean."""
    return '; '.join(f'{name}: {meaning}' for name, meaning in table.items())


def positive(value: str) -> int:
    """An argument that is a whole number above 0."""
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f'{value!r} is no whole number above 0')
    return int(value)


def image_size(value: str) -> tuple[int, int]:
    """An argument that is a size: ``512x640`` (height, width), or ``512``."""
    match = re.fullmatch(r'(\d+)(?:x(\d+))?', value)
    if match is None:
        raise argparse.ArgumentTypeError(
            f'{value!r} is no size; write HEIGHTxWIDTH in pixels, such as 512x512'
        )
    height = int(match[1])
    return height, int(match[2] or height)


def output_file(*suffixes: str):
    """The type of an argument that is a file to write."""

    def parse(value: str) -> Path:
        if Path(value).suffix.lower() not in suffixes:
            raise argparse.ArgumentTypeError(
                f'{value!r} does not end in {" or ".join(suffixes)}'
            )
        return Path(value)

    return parse


def check_output(path: Path, *, force: bool) -> None:
    """Checks that a file can be written, before anything is measured.

    Raises:
        BenchmarkError: it cannot, or it is there and ``force`` is not given.
    """
    try:
        check_writable(path, force=force)
    except OSError as error:
        raise BenchmarkError(str(error)) from None
