"""Results as pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from pressuring.report import median
from pressuring.training import growth_of

# Told apart by readers who do not see red or green, too.
COLORS = ('#0072b2', '#e69f00', '#56b4e9', '#000000')
MARKERS = ('o', 's', '^', 'D')


def plot_sizes(
    results: Sequence[Mapping], path: Path, *, title: str, kind: str
) -> None:
    """Draws memory and time of predictions over the size of the image.

    Args:
        results: of ``inference.as_dict``.
        path: the file.
        title: says what was measured on.
        kind: ``path``'s format, such as ``'png'``.
    """
    figure = Figure(figsize=(12, 5), layout='constrained')
    memory, time = figure.subplots(1, 2)
    groups: dict[str, list[Mapping]] = {}
    for result in results:
        name = f'{result["variant"]} {result["head"]}, {result["mode"]}'
        groups.setdefault(name, []).append(result)
    for number, (name, group) in enumerate(groups.items()):
        group = sorted(group, key=lambda result: result['megapixels'])
        measured = [result for result in group if result['seconds']]
        style = dict(
            color=COLORS[number % 4],
            marker=MARKERS[number % 4],
            ms=5,
            lw=1.5,
            label=name,
        )
        x = [result['megapixels'] for result in measured]
        peaks = [r['peak_memory_bytes'] or math.nan for r in measured]
        memory.plot(x, [peak / 1e9 for peak in peaks], **style)
        time.plot(x, [median(r) / r['megapixels'] for r in measured], **style)
        for result in group:
            if not result['seconds']:
                mark_missing(memory, result, color=style['color'])
    finish(memory, 'peak memory of a prediction, GB')
    finish(time, 'seconds per megapixel')
    memory.legend(frameon=False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=150, format=kind)


def mark_missing(axes: Axes, result: Mapping, *, color: str) -> None:
    """A cross at the upper border for an image that did not go through."""
    transform = axes.get_xaxis_transform()
    axes.plot(
        result['megapixels'], 0.98, 'x', color=color, ms=8, mew=2, transform=transform
    )
    axes.annotate(
        result['status'],
        (result['megapixels'], 0.98),
        xycoords=transform,
        xytext=(-6, 0),
        textcoords='offset points',
        ha='right',
        va='center',
        fontsize=8,
        color=color,
    )


def finish(axes: Axes, label: str) -> None:
    """Axes, in powers of ten as images are of very different sizes."""
    axes.set_xscale('log')
    axes.set_yscale('log')
    axes.set_xlabel('image, megapixels')
    axes.set_ylabel(label)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f'{value:g}')
        axis.set_minor_formatter(NullFormatter())
    # Times span little more than one power of ten.
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.grid(color='#dddddd', lw=0.6)
    axes.spines[['top', 'right']].set_visible(False)


def plot_training(
    results: Sequence[Mapping], path: Path, *, max_growth: int, title: str, kind: str
) -> None:
    """Draws how memory goes from step to step, and the lines fitted to it.

    Args:
        results: of ``training.as_dict``.
        path: the file.
        max_growth: the bound, in bytes.
        title: says what was measured on.
        kind: ``path``'s format, such as ``'png'``.
    """
    figure = Figure(figsize=(8.5, 4.5), layout='constrained')
    axes = figure.subplots()
    for number, result in enumerate(r for r in results if r['growth']):
        memory, growth = result['memory_bytes'], growth_of(result['memory_bytes'])
        color, steps = COLORS[number % 4], len(memory)
        axes.plot(
            range(1, steps + 1),
            [(value - growth.first) / 1e6 for value in memory],
            color=color,
            lw=1,
            alpha=0.6,
            label=f'{result["variant"]} {result["head"]}: '
            f'{growth.slope / 1e3:+.1f} kB per step',
        )
        line = (growth.warm_up + 1, steps), (0, growth.total / 1e6)
        axes.plot(*line, color=color, lw=2)
    axes.axhline(max_growth / 1e6, color='black', ls=':', lw=1, label='bound')
    axes.set_xlabel('step')
    axes.set_ylabel('memory above that after the warm-up, MB')
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(frameon=False, loc='lower right')
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=150, format=kind)
