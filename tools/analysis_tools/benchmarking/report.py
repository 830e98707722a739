"""Results as a table, as JSON, and as a plot."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarking.cases import Settings
from benchmarking.measurement import (
    GRADIENT_FACTOR,
    TOLERANCES,
    Measurement,
    Result,
)
from benchmarking.models import BUILTIN

WORDS = ('case', 'implementation')
FIGURES = (
    'median ms',
    'quartiles',
    'images/s',
    'speed-up',
    'memory MB',
    'share',
    'params M',
    'GFLOP',
    'of peak',
)
MEMORY = {
    'cuda': "peak of PyTorch's allocator, weights included",
    'cpu': 'peak of the process above its memory before the first run',
}
LEGEND = (
    'median ms, quartiles: time of a run. speed-up: median of the built-in over that '
    "of the row. memory MB: {memory}; share: relative to the built-in's. GFLOP: "
    'floating-point operations of one run in matrix products, convolutions and '
    'attention (2 for a multiplication and its addition). of peak: GFLOP per second, '
    'relative to a large matrix product on this machine.'
)
# Distinguishable for readers with color blindness, too.
COLORS = {
    'package': '#0072b2',
    'built-in': '#999999',
    'timm': '#e69f00',
    'package compiled': '#56b4e9',
    'built-in compiled': '#cccccc',
    'timm compiled': '#f0e442',
}
BAR = 0.26  # inches


def quartiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    """Return first quartile, median and third quartile."""
    if len(seconds) == 1:
        return (seconds[0],) * 3
    low, middle, high = statistics.quantiles(seconds, n=4, method='inclusive')
    return low, middle, high


def summarize(
    result: Result, measurement: Measurement, peaks: Mapping[str, float]
) -> dict:
    """Return the figures of a measurement, some of them relative to the built-in's.

    Args:
        result: the result of the case.
        measurement: one of its measurements, with times.
        peaks: FLOP per second of a matrix product, by dtype.

    Returns:
        Plain values by name; None for those that are unknown.
    """
    low, median, high = quartiles(measurement.seconds)
    builtin = result.builtin
    memory, flops = measurement.peak_memory, measurement.flops
    peak = peaks.get(result.case.dtype)
    known = memory is not None and builtin and builtin.peak_memory
    return {
        'median_s': median,
        'first_quartile_s': low,
        'third_quartile_s': high,
        'min_s': min(measurement.seconds),
        'max_s': max(measurement.seconds),
        'images_per_s': result.case.batch / median,
        'speedup': quartiles(builtin.seconds)[1] / median if builtin else None,
        'peak_memory_bytes': memory,
        'memory_share': memory / builtin.peak_memory if known else None,
        'parameters': measurement.parameters,
        'flops': flops,
        'share_of_gemm_peak': flops / median / peak if flops and peak else None,
    }


def make_row(
    result: Result, measurement: Measurement, peaks: Mapping[str, float]
) -> list[str]:
    """Return the cells of a measurement's row, without the case."""
    if not measurement.seconds:
        return [measurement.name, 'out of memory', *['-'] * (len(FIGURES) - 1)]
    s = summarize(result, measurement, peaks)
    low, median, high = (
        milliseconds(s[name])
        for name in ('first_quartile_s', 'median_s', 'third_quartile_s')
    )
    return [
        measurement.name,
        median,
        f'{low}-{high}',
        f'{s["images_per_s"]:.3g}',
        optional(s['speedup'], '{:.2f}x'),
        optional(s['peak_memory_bytes'], '{:.0f}', 1e-6),
        optional(s['memory_share'], '{:.2f}'),
        f'{s["parameters"] / 1e6:.1f}',
        optional(s['flops'], '{:.1f}', 1e-9),
        optional(s['share_of_gemm_peak'], '{:.0%}'),
    ]


def milliseconds(seconds: float) -> str:
    """Format a time in milliseconds with about three digits."""
    value = 1e3 * seconds
    return f'{value:.1f}' if value < 100 else f'{value:.0f}'


def optional(value: float | None, pattern: str, factor: float = 1.0) -> str:
    """Format a value; a dash for None."""
    return '-' if value is None else pattern.format(factor * value)


def format_table(
    results: Sequence[Result], peaks: Mapping[str, float], *, markdown: bool = False
) -> str:
    """Return the aligned table; the case is in the first of its rows only."""
    table = Table(box=box.MARKDOWN if markdown else box.SIMPLE_HEAD, pad_edge=markdown)
    for name in (*WORDS, *FIGURES):
        side = 'left' if name in WORDS else 'right'
        table.add_column(name, justify=side, no_wrap=True)
    for result in results:
        for number, measurement in enumerate(result.measurements):
            last = number == len(result.measurements) - 1
            title = '' if number else result.case.title
            row = make_row(result, measurement, peaks)
            table.add_row(title, *row, end_section=last and not markdown)
    console = Console(width=1000, color_system=None)
    with console.capture() as capture:
        console.print(table)
    lines = [line.rstrip() for line in capture.get().splitlines() if line.strip()]
    if markdown:  # rich does not write the alignment of columns
        words, figures = '---|' * len(WORDS), '--:|' * len(FIGURES)
        lines[1] = f'|{words}{figures}'
    return '\n'.join(lines)


def format_report(
    results: Sequence[Result],
    *,
    machine: Mapping,
    peaks: Mapping[str, float],
    settings: Settings,
    command: str,
    markdown: bool = False,
) -> str:
    """Return the table with the facts and notes that explain it.

    Args:
        machine: from ``describe_machine``.
        peaks: FLOP per second of a matrix product, by dtype.
        command: the command that repeats the measurement.
        markdown: whether to write Markdown.
    """
    facts = machine_facts(machine, peaks) + [settings_fact(settings)]
    notes = dict.fromkeys(
        f'{result.case.title}: {note.removeprefix(f"{result.case.title}: ")}'
        for result in results
        for note in [*agreement_notes(result), *result.notes]
    )
    legend = LEGEND.format(memory=MEMORY[settings.device])
    table = format_table(results, peaks, markdown=markdown)
    if markdown:
        facts, notes = ([f'- {line}' for line in lines] for lines in (facts, notes))
    parts = ['\n'.join(facts), table, legend, '\n'.join(notes)]
    if markdown:
        parts.insert(0, f'```bash\n{command}\n```')
    return '\n\n'.join(filter(None, parts))


def machine_facts(machine: Mapping, peaks: Mapping[str, float]) -> list[str]:
    """Return a few lines about the machine and the software."""
    lines = [
        f'CPU: {machine["cpu"]}, {machine["cores"]} cores, {machine["threads"]} threads'
    ]
    if 'gpu' in machine:
        tf32 = [k for k in ('convolution', 'matmul') if machine[f'{k}_tf32']]
        lines.append(
            f'GPU: {machine["gpu"]}, {machine["gpu_memory_bytes"] / 2**30:.0f} GiB, '
            f'compute capability {machine["capability"]}; driver {machine["driver"]}, '
            f'cuDNN {machine["cudnn"]}; TF32: {", ".join(tf32) or "off"}'
        )
    versions = ', '.join(f'{k} {v}' for k, v in machine['versions'].items())
    lines.append(f'Software: {versions}; {machine["system"]}')
    if machine['ops'] != 'auto':
        lines.append(f'MMSEG_TWINS_OPS={machine["ops"]}')
    speeds = ', '.join(f'{k} {v / 1e9:,.0f} GFLOP/s' for k, v in peaks.items())
    return [*lines, f'Measured peak of a large matrix product: {speeds}']


def settings_fact(settings: Settings) -> str:
    """Return a line about the settings."""
    mode = 'torch.inference_mode' if settings.inference_mode else 'torch.no_grad'
    return (
        f'Timed runs of each implementation, in turns: {settings.runs}; warm-up runs: '
        f'{settings.warmup}; device: {settings.device}; seed: {settings.seed}; '
        f'inference under {mode}'
    )


def agreement_notes(result: Result) -> list[str]:
    """Return a sentence about the differences of outputs, if they were compared."""
    parts = [
        f'{name}: {", ".join(f"{kind} {value:.1e}" for kind, value in kinds.items())}'
        for name, kinds in result.differences.items()
    ]
    found = f'relative difference (RMS) from the built-in: {"; ".join(parts)}'
    return [found] if parts else []


def as_json(
    results: Sequence[Result],
    *,
    peaks: Mapping[str, float],
    settings: Settings,
    **context: object,
) -> dict:
    """Return all results as plain values for ``json.dump``."""
    return {
        **context,
        'gemm_peak_flops_per_s': dict(peaks),
        'settings': asdict(settings),
        'memory': MEMORY[settings.device],
        'tolerances': {'relative_rms': TOLERANCES, 'gradient_factor': GRADIENT_FACTOR},
        'results': [
            {
                'case': asdict(result.case),
                'differences_from_builtin': result.differences,
                'notes': result.notes,
                'implementations': {
                    m.name: {
                        **(summarize(result, m, peaks) if m.seconds else {}),
                        'seconds': m.seconds,
                    }
                    for m in result.measurements
                },
            }
            for result in results
        ],
    }


def plot(results: Sequence[Result], path: Path, *, title: str, kind: str) -> None:
    """Draw bars of time and memory, relative to the built-in's, to a file.

    Args:
        results: the results; those without the built-in are left out.
        title: name of the machine.
        kind: format of the file, such as ``'png'``.
    """
    results = [result for result in results if result.builtin]
    rows = [(r, m) for r in results for m in r.measurements if m.seconds]
    height = 1.4 + BAR * (len(rows) + len(results))
    figure = Figure(figsize=(14, height), layout='constrained')
    times, memory = figure.subplots(1, 2, sharey=True)
    draw_bars(
        times,
        results,
        lambda m: quartiles(m.seconds)[1],
        '{:.3g} s',
        "time, as a share of the built-in's (shorter is faster)",
    )
    draw_bars(
        memory,
        results,
        lambda m: m.peak_memory and m.peak_memory / 1e6,
        '{:.0f} MB',
        "peak memory, as a share of the built-in's",
    )
    names = dict.fromkeys(m.name for _, m in rows)
    handles = [times.barh(0, 0, color=COLORS[name]) for name in names]
    figure.legend(handles, list(names), loc='outside lower center', ncols=len(names))
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=150, format=kind)


def draw_bars(
    axes: Axes,
    results: Sequence[Result],
    value_of: Callable[[Measurement], float | None],
    pattern: str,
    label: str,
) -> None:
    """Draw one value of each measurement, cases from top to bottom."""
    place, ticks = 0, []
    for result in results:
        whole = value_of(result.builtin)
        ticks.append(place + (len(result.measurements) - 1) / 2)
        for measurement in result.measurements:
            value = value_of(measurement) if measurement.seconds else None
            if value and whole:
                share = value / whole
                axes.barh(place, share, height=0.9, color=COLORS[measurement.name])
                text = pattern.format(value)
                if measurement.name != BUILTIN:
                    text += f' ({share:.0%})'
                axes.text(share, place, f' {text}', va='center', fontsize=8)
            place += 1
        place += 1  # a gap between cases
    axes.set_yticks(ticks, [result.case.title for result in results], fontsize=9)
    axes.set_ylim(max(place - 1, 1), -0.8)
    axes.axvline(1, color='black', lw=0.8, ls=':', zorder=0)
    axes.set_xlim(0, axes.get_xlim()[1] * 1.3)  # room for the text
    axes.set_xlabel(label)
    axes.spines[['top', 'right']].set_visible(False)
    axes.tick_params(axis='y', length=0)
