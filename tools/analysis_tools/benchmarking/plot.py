"""Results as a picture: bars of time and memory, in shares of the built-in's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarking.measurement import Result
from benchmarking.models import BUILTIN
from benchmarking.report import milliseconds, quartiles

# Told apart by readers who do not see red or green, too.
COLORS = {
    'package': '#0072b2',
    'built-in': '#999999',
    'timm': '#e69f00',
    'package compiled': '#56b4e9',
    'built-in compiled': '#cccccc',
    'timm compiled': '#f0e442',
}
BAR = 0.26  # inches


def plot(results: Sequence[Result], path: Path, *, title: str, kind: str) -> None:
    """Draws results into a file.

    Args:
        results: at least one.
        path: the file.
        title: says what was measured on.
        kind: ``path``'s format, such as ``'png'``.
    """
    bars = sum(len(result.measurements) for result in results)
    with_memory = any(m.peak_memory for r in results for m in r.measurements)
    figure = Figure(
        figsize=(14 if with_memory else 8.5, 1.4 + BAR * (bars + len(results))),
        layout='constrained',
    )
    axes = figure.subplots(1, 2 if with_memory else 1, sharey=True, squeeze=False)[0]
    draw_times(axes[0], results)
    if with_memory:
        draw_memory(axes[1], results)
    label_cases(axes[0], results)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.suptitle(title, fontsize=11)
    figure.legend(
        handles, labels, loc='outside lower center', ncols=len(labels), frameon=False
    )
    figure.savefig(path, dpi=150, format=kind)


def positions(results: Sequence[Result]) -> list[list[int]]:
    """Heights of the bars of each case, with a gap between cases."""
    places, start = [], 0
    for result in results:
        count = len(result.measurements)
        places.append(list(range(start, start + count)))
        start += count + 1
    return places


def draw_times(axes: Axes, results: Sequence[Result]) -> None:
    """Medians with their quartiles."""
    seen = set()
    for result, places in zip(results, positions(results), strict=True):
        whole = quartiles(result.get(BUILTIN).seconds)[1]
        for measurement, place in zip(result.measurements, places, strict=True):
            low, median, high = quartiles(measurement.seconds)
            name = measurement.name
            axes.barh(
                place,
                median / whole,
                height=0.9,
                color=COLORS[name],
                xerr=[[(median - low) / whole], [(high - median) / whole]],
                error_kw=dict(lw=1, capsize=2),
                label=None if name in seen else name,
            )
            seen.add(name)
            text = f'{milliseconds(median)} ms'
            if name != BUILTIN:
                text += f'  ({whole / median:.2f}x as fast)'
            write_beside(axes, max(high, median) / whole, place, text)
    finish(axes, "time, in shares of the built-in's (shorter is faster)")


def draw_memory(axes: Axes, results: Sequence[Result]) -> None:
    """Peak memory."""
    for result, places in zip(results, positions(results), strict=True):
        whole = result.get(BUILTIN).peak_memory
        for measurement, place in zip(result.measurements, places, strict=True):
            if not whole or measurement.peak_memory is None:
                continue
            share = measurement.peak_memory / whole
            axes.barh(place, share, height=0.9, color=COLORS[measurement.name])
            text = f'{measurement.peak_memory / 1e6:.0f} MB'
            if measurement.name != BUILTIN:
                text += f'  ({share:.0%})'
            write_beside(axes, share, place, text)
    finish(axes, "peak memory, in shares of the built-in's")


def write_beside(axes: Axes, x: float, y: float, text: str) -> None:
    """Writes at the end of a bar."""
    axes.annotate(
        text,
        (x, y),
        xytext=(4, 0),
        textcoords='offset points',
        va='center',
        fontsize=8,
        bbox=dict(facecolor='white', edgecolor='none', pad=1),
    )


def finish(axes: Axes, label: str) -> None:
    """What both pictures have."""
    axes.axvline(1, color='black', lw=0.8, ls=':', zorder=0)
    axes.set_xlabel(label)
    axes.set_xlim(0, axes.get_xlim()[1] * 1.3)  # room for the text
    axes.spines[['top', 'right']].set_visible(False)
    axes.tick_params(axis='y', length=0)


def label_cases(axes: Axes, results: Sequence[Result]) -> None:
    """Names of the cases beside their bars, the first at the top."""
    places = positions(results)
    axes.set_yticks([sum(group) / len(group) for group in places])
    axes.set_yticklabels([result.case.title for result in results], fontsize=9)
    axes.set_ylim(places[-1][-1] + 0.8, -0.8)
