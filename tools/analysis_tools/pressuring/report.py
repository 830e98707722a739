"""Results as tables and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from benchmarking.report import optional

COLUMNS = (
    'model',
    'image',
    'megapixels',
    'mode',
    'windows',
    'peak memory MB',
    'MB per megapixel',
    's',
    's per megapixel',
    'result',
)
LEGEND = (
    'peak memory MB: what the process grows by at its peak above its size before, with '
    'the model loaded and used once. s: median of the predictions, at most {runs}; one '
    'that takes {enough:.0f} s is the last. whole: the image goes through the network '
    'at once; slide: in windows of {crop} px, {stride} px apart.'
)
TRAINING_COLUMNS = (
    'model',
    'steps',
    'left out',
    'memory MB',
    'slope kB per step',
    'growth MB',
    'bound MB',
    'verdict',
)
TRAINING_LEGEND = (
    'left out: first steps, in which caches fill. memory MB: of the process after '
    'those. slope: of a line through the memory after each further step; growth: what '
    'the line rises by.'
)


def make_rows(results: Sequence[Mapping]) -> list[tuple[str, ...]]:
    """The cells for predictions, a row for each of ``inference.as_dict``."""
    rows = []
    for result in results:
        megapixels, memory = result['megapixels'], result['peak_memory_bytes']
        seconds = median(result)
        rows.append(
            (
                f'{result["variant"]} {result["head"]}',
                f'{result["height"]}x{result["width"]}',
                f'{megapixels:.3g}',
                result['mode'],
                str(result['windows']),
                optional(memory, '{:,.0f}', 1e-6),
                optional(memory, '{:,.0f}', 1e-6 / megapixels),
                optional(seconds, '{:.3g}'),
                optional(seconds, '{:.3g}', 1 / megapixels),
                describe(result),
            )
        )
    return rows


def describe(result: Mapping) -> str:
    """How a measurement ended, in a few words."""
    message = result['message']
    return f'{result["status"]}: {message}' if message else result['status']


def median(result: Mapping) -> float | None:
    """Median of the seconds, or None where there are none."""
    return statistics.median(result['seconds']) if result['seconds'] else None


def make_training_rows(
    results: Sequence[Mapping], max_growth: int
) -> list[tuple[str, ...]]:
    """The cells for trainings, a row for each of ``training.as_dict``."""
    rows = []
    for result in results:
        growth = result['growth'] or {}
        rows.append(
            (
                f'{result["variant"]} {result["head"]}',
                str(result['steps']),
                optional(growth.get('warm_up'), '{:.0f}'),
                optional(growth.get('first'), '{:.1f}', 1e-6),
                optional(growth.get('slope'), '{:+.1f}', 1e-3),
                optional(growth.get('total'), '{:+.1f}', 1e-6),
                f'{max_growth / 1e6:.1f}',
                verdict(result, max_growth),
            )
        )
    return rows


def verdict(result: Mapping, max_growth: int) -> str:
    """Whether the memory of a training stays level, in a word or two."""
    if result['growth'] is None:
        return describe(result)
    return 'level' if is_level(result, max_growth) else 'GROWS'


def is_level(result: Mapping, max_growth: int) -> bool:
    """Whether a training ended, and its memory grew by no more than the bound."""
    return result['growth'] is not None and result['growth']['total'] <= max_growth


def format_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    words: Sequence[str] = ('model', 'mode', 'result', 'verdict'),
    markdown: bool = False,
) -> str:
    """An aligned table.

    Args:
        columns: heads of the columns.
        rows: cells.
        words: columns that are aligned to the left, all others to the right.
        markdown: whether to draw it as Markdown does.
    """
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        aligned = [
            cell.ljust(width) if column in words else cell.rjust(width)
            for column, cell, width in zip(columns, cells, widths, strict=True)
        ]
        if markdown:
            return f'| {" | ".join(aligned)} |'
        return '  '.join(aligned).rstrip()

    rules = [
        '-' * width if column in words or not markdown else '-' * (width - 1) + ':'
        for column, width in zip(columns, widths, strict=True)
    ]
    return '\n'.join([line(columns), line(rules), *map(line, rows)])


def format_report(
    facts: Sequence[str], table: str, legend: str, *, command: str, markdown: bool
) -> str:
    """A table with what a reader needs to know about it.

    Args:
        facts: lines about the machine.
        table: of :func:`format_table`.
        legend: what its columns mean.
        command: that measures it again.
        markdown: whether to write Markdown.
    """
    if not markdown:
        return '\n\n'.join(['\n'.join(facts), table, legend])
    bullets = '\n'.join(f'- {fact}' for fact in facts)
    return '\n\n'.join([f'```console\n{command}\n```', bullets, table, legend])


def machine_facts(machine: Mapping, limit: int) -> list[str]:
    """The machine in a few lines.

    Args:
        machine: as ``describe_machine`` gives it.
        limit: bytes that a measurement may take.
    """
    versions = machine['versions']
    return [
        f'CPU: {machine["cpu"]}, {machine["cores"]} cores, '
        f'{machine["threads"]} threads',
        f'Software: {", ".join(f"{k} {v}" for k, v in versions.items())}',
        f'What one measurement may take: {limit / 1e6:,.0f} MB',
    ]
