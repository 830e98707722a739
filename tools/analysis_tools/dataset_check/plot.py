"""How often classes occur, as bars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from dataset_check.findings import Scanned
from dataset_check.report import percent

# Told apart by readers who do not see red or green, too.
COLORS = ('#0072b2', '#e69f00', '#56b4e9', '#cc79a7')
INK, FAINT = '#2b2b33', '#e4e4ea'
ROW = 0.34  # inches for a class


def draw_frequencies(path: Path, scanned: Sequence[Scanned], *, title: str) -> None:
    """Draws shares of pixels and numbers of images, the most frequent class on top.

    Args:
        path: PNG file to write.
        scanned: datasets with the classes of the first; others are left out.
        title: stands above all.
    """
    classes = scanned[0].dataset.classes
    scanned = [one for one in scanned if one.dataset.classes == classes]
    order = np.argsort(-scanned[0].pixels, kind='stable')
    height = 1.5 + ROW * len(classes)
    figure = Figure(figsize=(11, height), dpi=130, facecolor='white')
    figure.suptitle(
        title, fontsize=13, weight='bold', color=INK, y=1 - 0.14 / height, va='top'
    )
    pixels, images = figure.subplots(1, 2, sharey=True)
    shares = [100 * one.pixels / max(1, one.pixels.sum()) for one in scanned]
    draw_bars(pixels, shares, scanned, order, write=percent)
    counts = [one.images for one in scanned]
    draw_bars(images, counts, scanned, order, write='{:,}'.format, begin=0.8)
    pixels.set_title(
        'share of the pixels that count', fontsize=11, color=INK, loc='left'
    )
    images.set_title('images with the class', fontsize=11, color=INK, loc='left')
    pixels.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:g} %'))
    images.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:,.0f}'))
    pixels.set_yticks(range(len(classes)), [classes[i] for i in order], fontsize=10)
    pixels.set_ylim(len(classes) - 0.4, -0.6)
    handles, labels = images.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc='lower center',
        ncols=len(labels),
        frameon=False,
        fontsize=10,
    )
    longest = max(map(len, classes))
    figure.subplots_adjust(
        left=min(0.3, 0.025 + 0.0075 * longest),
        right=0.975,
        top=1 - 0.72 / height,
        bottom=0.72 / height,
        wspace=0.07,
    )
    figure.savefig(path, format='png')


def draw_bars(
    axes: Axes,
    values: Sequence[np.ndarray],
    scanned: Sequence[Scanned],
    order: np.ndarray,
    *,
    write: Callable[[float], str],
    begin: float | None = None,
) -> None:
    """Draws a group of bars for each class, a bar for each dataset.

    Args:
        axes: where.
        values: of each dataset, (classes,).
        scanned: the datasets.
        order: of the classes, from the top.
        write: turns a value into what stands beside its bar.
        begin: where bars begin, as none can on a logarithmic axis at 0; by default
            half a decade or less below the least.
    """
    thick = 0.8 / len(values)
    present = np.concatenate([v[v > 0] for v in values])
    low = present.min() if present.size else 1
    high = present.max() if present.size else 1
    axes.set_xscale('log')
    begin = begin or 10 ** (np.floor(2 * np.log10(low) - 0.01) / 2)
    axes.set_xlim(begin, high * (high / begin) ** 0.18)  # room for the numbers
    for index, (one, row) in enumerate(zip(scanned, values, strict=True)):
        places = np.arange(len(order)) - 0.4 + thick * (index + 0.5)
        axes.barh(
            places,
            row[order],
            height=0.92 * thick,
            color=COLORS[index % len(COLORS)],
            label=one.dataset.name,
        )
        for place, value in zip(places, row[order], strict=True):
            axes.annotate(
                write(value) if value else 'never',
                (max(value, begin), place),
                xytext=(3, 0),
                textcoords='offset points',
                va='center',
                fontsize=7.5,
                color=INK,
            )
    # Less than a decade would be labelled in between as well.
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis='x', color=FAINT, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0)
    axes.tick_params(axis='x', which='minor', length=0)
    axes.spines[:].set_visible(False)
