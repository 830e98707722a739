"""Compare the tables of figures in the docs with what their commands print today.

A comment before a table, which the pages do not show, names its command and columns:

    <!-- figures, slow: python tools/analysis_tools/benchmark.py --markdown
    columns: params M; GFLOP; speed-up within 25% -->

The command prints Markdown tables and runs in a new folder that shows the project;
`above` stands for the block of code above. A column without `within` has to equal what
is printed, rounded to the digits on the page. Rows are found by name: by the columns
before the first number. The page may shorten names to a unique beginning, and leave out
rows and columns. Commands are `quick` (seconds), `slow` (minutes), or `measured`, with
results that depend on the machine. Exits with status 1 if a figure differs.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
KINDS = ('quick', 'slow', 'measured')
SHOWN = ('configs', 'docs', 'mmseg_twins', 'requirements', 'tests', 'tools')
COMMENT = re.compile(r'<!-- figures, (\w+): (.*?)\ncolumns: (.*?) -->', re.DOTALL)
BLOCK = re.compile(r'^```(?:bash|console|text)\n(.*?)^```$', re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r'\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?')


class Table(NamedTuple):
    """A Markdown table: the line of its header, and its rows by name, then column."""

    line: int
    rows: dict[str, dict[str, str]]


class Figures(NamedTuple):
    """A table of a page, the command that makes it, and tolerances by column."""

    place: str
    kind: str
    command: str
    tolerances: dict[str, str]
    table: Table


def cells(line: str) -> list[str]:
    """Return the cells of a table's row."""
    return [cell.strip() for cell in line.strip().strip('|').split('|')]


def tables(text: str) -> list[Table]:
    """Return the tables of a text."""
    text = re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', text.replace('`', ''))  # links
    lines, found = text.splitlines(), []
    for number, line in enumerate(lines):
        if number and re.fullmatch(r'\|[-:| ]*-[-:| ]*\|', line.strip()):
            end = next(
                (n for n in range(number, len(lines)) if lines[n][:1] != '|'), None
            )
            columns, _, *body = map(cells, lines[number - 1 : end])
            # Where a column has a number, names of rows have ended.
            numeric = [
                any(row[n][:1].isdigit() for row in body) for n in range(len(columns))
            ]
            width = max(1, [*numeric, True].index(True))
            rows, name = {}, [''] * width
            for row in body:
                name = [row[n] or name[n] for n in range(width)]  # or that above it
                rows[' '.join(name)] = dict(zip(columns, row, strict=True))
            found.append(Table(number, rows))
    return found


def figures(page: Path) -> list[Figures]:
    """Return the tables of a page that have a comment.

    Raises:
        ValueError: A comment is of no kind, has no table, or names no column of it.
    """
    text, found = page.read_text(encoding='utf-8'), []
    for comment in COMMENT.finditer(text):
        kind, command, columns = comment.groups()
        line = text.count('\n', 0, comment.end()) + 1
        table = next((one for one in tables(text) if one.line > line), Table(line, {}))
        if command == 'above':
            *_, command = BLOCK.findall(text, 0, comment.start())
        pairs = (part.strip().partition(' within ') for part in columns.split(';'))
        tolerances = {name: tolerance or '0' for name, _, tolerance in pairs}
        place = f'{page.name}:{table.line}'
        if kind not in KINDS:
            raise ValueError(f'{place}: {kind!r} is none of {", ".join(KINDS)}')
        for name in tolerances:
            if not any(name in row for row in table.rows.values()):
                raise ValueError(f'{place}: the table has no column {name!r}')
        found.append(Figures(place, kind, command, tolerances, table))
    return found


def output_of(command: str) -> str:
    """Run a command in a new folder that shows the project; return what it prints."""
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    with tempfile.TemporaryDirectory() as folder:
        for name in SHOWN:
            Path(folder, name).symlink_to(ROOT / name)
        return subprocess.run(
            ['bash', '-euo', 'pipefail', '-c', command],
            cwd=folder, env={**os.environ, 'PATH': path}, stdout=subprocess.PIPE,
            text=True, check=True,
        ).stdout  # fmt: skip


def agree(said: str, printed: str, tolerance: str) -> bool:
    """Whether a cell's numbers, or its words if it has none, are those printed."""
    here, there = NUMBER.findall(said), NUMBER.findall(printed)
    if not here or len(here) != len(there):
        return said == printed
    for one, other in zip(here, there, strict=True):
        digits, _, exponent = one.replace(',', '').partition('e')
        rounding = 0.5001 * 10.0 ** (int(exponent or 0) - len(digits.partition('.')[2]))
        first, second = float(one.replace(',', '')), float(other.replace(',', ''))
        allowed = float(tolerance.rstrip('%'))
        allowed *= first / 100 if tolerance.endswith('%') else 1
        if abs(first - second) > allowed + rounding:
            return False
    return True


def differences(one: Figures) -> list[str]:
    """Run a table's command; return a line for each figure that it does not print."""
    try:
        found = tables(output_of(one.command))
    except subprocess.CalledProcessError as error:
        return [f'{one.place}: the command ends with {error.returncode}']
    printed, problems = {}, []
    for name, row in (item for table in found for item in table.rows.items()):
        printed.setdefault(name, {}).update(row)
    for name, row in one.table.rows.items():
        names = [other for other in printed if f'{other} '.startswith(f'{name} ')]
        if len(names) != 1 and name not in printed:
            problems.append(
                f'{one.place}: {name}: {len(names)} printed rows have this name'
            )
            continue
        now = printed[name if name in printed else names[0]]
        problems += [
            f'{one.place}: {name}, {column}: the page says {row[column]}, printed is '
            f'{now.get(column, "nothing")}, allowed is a difference of {tolerance}'
            for column, tolerance in one.tolerances.items()
            if not agree(row[column], now.get(column, ''), tolerance)
        ]
    return problems


def main(argv: Sequence[str] | None = None) -> int:
    """Run the commands, print the differences, and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('pages', nargs='*', type=Path, default=PAGES, metavar='PAGE',
        help='Markdown files (default: all pages)')  # fmt: skip
    add('--kinds', nargs='+', choices=KINDS, default=KINDS[:1],
        help='kinds of commands to run (default: quick)')  # fmt: skip
    add('--list', action='store_true', help='list the commands instead')
    args = parser.parse_args(argv)
    chosen = [one for page in args.pages for one in figures(page)]
    problems = []
    for one in (one for one in chosen if one.kind in args.kinds):
        command = ' '.join(one.command.replace('\\\n', ' ').split())
        print(f'{one.place}: {one.kind}: {command}', flush=True)
        problems += [] if args.list else differences(one)
    print(*problems, sep='\n', end='\n' * bool(problems), file=sys.stderr)
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
