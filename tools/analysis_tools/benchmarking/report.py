"""Results as a table for people and as JSON for programs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from benchmarking.agreement import GRADIENT_FACTOR, TOLERANCES
from benchmarking.measurement import Measurement, Result, Settings
from benchmarking.memory import KINDS
from benchmarking.models import BUILTIN

COLUMNS = (
    'case',
    'implementation',
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
LEGEND = (
    'median ms, quartiles: time of a run. speed-up: median of the built-in over '
    "this one's. memory MB: {memory}; share: of the built-in's. GFLOP: floating-point "
    'operations that one run executes in matrix products, convolutions and attention '
    '(2 for a multiplication and its addition). of peak: GFLOP per second, as a share '
    'of what a large matrix product reaches here.'
)


def quartiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile."""
    if len(seconds) == 1:
        return (seconds[0],) * 3
    low, middle, high = statistics.quantiles(seconds, n=4, method='inclusive')
    return low, middle, high


def summarize(
    result: Result, measurement: Measurement, peaks: Mapping[str, float]
) -> dict:
    """Figures that follow from a measurement and those beside it.

    Args:
        result: the case's.
        measurement: one of its.
        peaks: floating-point operations per second of a matrix product, by dtype.

    Returns:
        Plain values, by name; None where something is not known.
    """
    low, median, high = quartiles(measurement.seconds)
    builtin = result.get(BUILTIN)
    memory, flops = measurement.peak_memory, measurement.flops
    peak = peaks.get(result.case.dtype)
    return {
        'median_s': median,
        'first_quartile_s': low,
        'third_quartile_s': high,
        'min_s': min(measurement.seconds),
        'max_s': max(measurement.seconds),
        'images_per_s': result.case.batch / median,
        'speedup': quartiles(builtin.seconds)[1] / median,
        'peak_memory_bytes': memory,
        'memory_share': (
            memory / builtin.peak_memory
            if memory is not None and builtin.peak_memory
            else None
        ),
        'parameters': measurement.parameters,
        'flops': flops,
        'share_of_gemm_peak': flops / median / peak if flops and peak else None,
    }


def make_rows(
    results: Sequence[Result], peaks: Mapping[str, float]
) -> list[tuple[str, ...]]:
    """The cells of the table, a row for each measurement."""
    rows = []
    for result in results:
        for measurement in result.measurements:
            s = summarize(result, measurement, peaks)
            rows.append(
                (
                    result.case.title,
                    measurement.name,
                    milliseconds(s['median_s']),
                    f'{milliseconds(s["first_quartile_s"])}-'
                    f'{milliseconds(s["third_quartile_s"])}',
                    f'{s["images_per_s"]:.3g}',
                    f'{s["speedup"]:.2f}x',
                    optional(s['peak_memory_bytes'], '{:.0f}', 1e-6),
                    optional(s['memory_share'], '{:.2f}'),
                    f'{s["parameters"] / 1e6:.1f}',
                    optional(s['flops'], '{:.1f}', 1e-9),
                    optional(s['share_of_gemm_peak'], '{:.0%}'),
                )
            )
    return rows


def milliseconds(seconds: float) -> str:
    """A time with about three digits."""
    value = 1e3 * seconds
    return f'{value:.1f}' if value < 100 else f'{value:.0f}'


def optional(value: float | None, pattern: str, factor: float = 1.0) -> str:
    """A formatted value, or a dash where there is none."""
    return '-' if value is None else pattern.format(factor * value)


def format_table(
    results: Sequence[Result], peaks: Mapping[str, float], *, markdown: bool = False
) -> str:
    """The table, aligned.

    Args:
        results: what was measured.
        peaks: floating-point operations per second of a matrix product, by dtype.
        markdown: whether to draw it as Markdown does.
    """
    rows = make_rows(results, peaks)
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    left = (0, 1)  # columns of words

    def line(cells: Sequence[str]) -> str:
        aligned = [
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        if markdown:
            return f'| {" | ".join(aligned)} |'
        return '  '.join(aligned).rstrip()

    rules = [
        '-' * width if index in left or not markdown else '-' * (width - 1) + ':'
        for index, width in enumerate(widths)
    ]
    lines, previous = [line(COLUMNS), line(rules)], None
    for row in rows:
        if row[0] == previous:
            row = ('', *row[1:])  # the case stands in its first row only
        else:
            if previous is not None and not markdown:
                lines.append('')
            previous = row[0]
        lines.append(line(row))
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
    """Everything that a reader of the table needs to know, and the table.

    Args:
        results: what was measured.
        machine: as ``describe_machine`` gives it.
        peaks: floating-point operations per second of a matrix product, by dtype.
        settings: how it was measured.
        command: that measures it again.
        markdown: whether to write Markdown.
    """
    facts = machine_facts(machine, peaks) + [settings_fact(settings)]
    notes = dict.fromkeys(
        f'{result.case.title}: {note.removeprefix(f"{result.case.title}: ")}'
        for result in results
        for note in [agreement_note(result), *result.notes]
    )
    legend = LEGEND.format(memory=KINDS[settings.device])
    table = format_table(results, peaks, markdown=markdown)
    if not markdown:
        parts = ['\n'.join(facts), table, legend, '\n'.join(notes)]
        return '\n\n'.join(parts)
    bullets = '\n'.join(f'- {fact}' for fact in facts)
    notes = '\n'.join(f'- {note}' for note in notes)
    return '\n\n'.join([f'```bash\n{command}\n```', bullets, table, legend, notes])


def machine_facts(machine: Mapping, peaks: Mapping[str, float]) -> list[str]:
    """The machine in a few lines."""
    lines = [
        f'CPU: {machine["cpu"]}, {machine["cores"]} cores, {machine["threads"]} threads'
    ]
    if 'gpu' in machine:
        gib = machine['gpu_memory_bytes'] / 2**30
        tf32 = ' and '.join(
            name
            for name, on in (
                ('convolutions', machine['convolution_tf32']),
                ('matrix products', machine['matmul_tf32']),
            )
            if on
        )
        lines.append(
            f'GPU: {machine["gpu"]}, {gib:.0f} GiB, CUDA {machine["cuda"]}; fp32 with '
            f'TF32 in {tf32 or "nothing"}'
        )
    versions = ', '.join(f'{k} {v}' for k, v in machine['versions'].items())
    lines.append(f'Software: {versions}; {machine["system"]}')
    speeds = ', '.join(f'{k} {v / 1e9:,.0f} GFLOP/s' for k, v in peaks.items())
    lines.append(f'Measured peak of a large matrix product: {speeds}')
    return lines


def settings_fact(settings: Settings) -> str:
    """How it was measured, in a line."""
    mode = 'torch.inference_mode' if settings.inference_mode else 'torch.no_grad'
    return (
        f'Timed runs of each implementation, in turns: {settings.runs}; to warm up: '
        f'{settings.warmup}; device: {settings.device}; seed: {settings.seed}; '
        f'inference under {mode}'
    )


def agreement_note(result: Result) -> str:
    """How far outputs are apart, in a sentence."""
    parts = [
        f'{name}: '
        + ', '.join(f'{kind} {value:.1e}' for kind, value in differences.items())
        for name, differences in result.differences.items()
    ]
    return f'relative difference (RMS) from the built-in: {"; ".join(parts)}'


def as_json(
    results: Sequence[Result],
    *,
    machine: Mapping,
    peaks: Mapping[str, float],
    settings: Settings,
    command: str,
    date: str,
) -> dict:
    """Everything that was measured, as plain values for ``json.dump``.

    Args:
        results: what was measured.
        machine: as ``describe_machine`` gives it.
        peaks: floating-point operations per second of a matrix product, by dtype.
        settings: how it was measured.
        command: that measures it again.
        date: when, in ISO 8601.
    """
    return {
        'command': command,
        'date': date,
        'machine': dict(machine),
        'gemm_peak_flops_per_s': dict(peaks),
        'settings': vars(settings),
        'memory': KINDS[settings.device],
        'tolerances': {'relative_rms': TOLERANCES, 'gradient_factor': GRADIENT_FACTOR},
        'results': [
            {
                'case': vars(result.case),
                'differences_from_builtin': result.differences,
                'notes': result.notes,
                'implementations': {
                    m.name: {**summarize(result, m, peaks), 'seconds': m.seconds}
                    for m in result.measurements
                },
            }
            for result in results
        ],
    }
