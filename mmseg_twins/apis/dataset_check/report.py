"""What was found, as text, as plain values for JSON, and as bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich import box
from rich.console import Console
from rich.table import Table

from .datasets import Dataset
from .findings import Finding

# Told apart by readers who do not see red or green, too.
COLORS = ('#0072b2', '#e69f00', '#56b4e9', '#cc79a7')
INK, FAINT = '#2b2b33', '#e4e4ea'
ROW = 0.34  # inches for a class


def text(datasets: Sequence[Dataset], findings: Sequence[Finding]) -> str:
    """Return a table of the classes, what is wrong, and what else to know."""
    parts = [class_table(datasets)]
    for title, problem in (('Problems', True), ('Worth knowing', False)):
        lines = [f'- {finding}' for finding in findings if finding.problem is problem]
        if lines:
            parts.append('\n'.join([f'{title}:', *lines]))
    count = sum(finding.problem for finding in findings)
    files = ', '.join(f'{data.name} {len(data.pairs):,}' for data in datasets)
    verdict = f'{count} problem{"s" * (count != 1)}' if count else 'no problems'
    parts.append(f'{verdict} found in the images: {files}')
    return '\n\n'.join(parts)


def comparable(datasets: Sequence[Dataset]) -> list[Dataset]:
    """Return the datasets with the classes of the first."""
    return [data for data in datasets if data.classes == datasets[0].classes]


def class_table(datasets: Sequence[Dataset]) -> str:
    """Return each class's share of the pixels that count, and the images it is in."""
    datasets = comparable(datasets)
    table = Table('class', box=box.SIMPLE_HEAD, pad_edge=False)
    for data in datasets:
        table.add_column(f'{data.name} pixels', justify='right', no_wrap=True)
        table.add_column('images', justify='right', no_wrap=True)
    for index, name in enumerate(datasets[0].classes):
        cells = []
        for data in datasets:
            cells.append(percent(share(data.pixels)[index]))
            cells.append(f'{data.images[index]:,}')
        table.add_row(name, *cells)
    ignored = (100 * d.ignored / max(1, d.raw_pixels.sum()) for d in datasets)
    table.add_row('(ignored)', *(c for value in ignored for c in (percent(value), '')))
    console = Console(width=1000, color_system=None, markup=False)
    with console.capture() as capture:
        console.print(table)
    return '\n'.join(line.rstrip() for line in capture.get().splitlines()).strip('\n')


def share(pixels: np.ndarray) -> np.ndarray:
    """Return percentages of the sum."""
    return 100 * pixels / max(1, pixels.sum())


def percent(value: float) -> str:
    """Return a percentage with three significant digits; a dash for nothing."""
    digits = f'{value:#.3g}'.removesuffix('.')
    return f'{digits} %' if value else '-'


def as_dict(datasets: Sequence[Dataset], findings: Sequence[Finding]) -> dict:
    """Return all that was found, for JSON."""
    return {
        'datasets': [
            {
                'name': data.name,
                'images': len(data.pairs),
                'reduce_zero_label': data.reduce_zero_label,
                'ignored_pixels': data.ignored,
                'classes': {
                    name: {'pixels': int(pixels), 'images': int(images)}
                    for name, pixels, images in zip(
                        data.classes, data.pixels, data.images, strict=True
                    )
                },
            }
            for data in datasets
        ],
        'problems': [asdict(f) for f in findings if f.problem],
        'notes': [asdict(f) for f in findings if not f.problem],
    }


def draw_frequencies(path: Path, datasets: Sequence[Dataset]) -> None:
    """Draw shares of pixels and numbers of images, the most frequent class on top."""
    datasets = comparable(datasets)
    order = np.argsort(-datasets[0].pixels, kind='stable')
    names = [datasets[0].classes[i] for i in order]
    figure = Figure((11, 1.7 + ROW * len(names)), dpi=130)
    figure.set_layout_engine('constrained', w_pad=0.12, h_pad=0.08)
    figure.suptitle('How often classes occur', fontsize=13, weight='bold', color=INK)
    pixels, images = figure.subplots(1, 2, sharey=True)
    pixels.set_title('share of the labeled pixels', fontsize=11, loc='left')
    images.set_title('images with the class', fontsize=11, loc='left')
    shares = [share(data.pixels)[order] for data in datasets]
    thick = 0.8 / len(datasets)
    for index, (data, row) in enumerate(zip(datasets, shares, strict=True)):
        places = np.arange(len(order)) - 0.4 + thick * (index + 0.5)
        style = dict(height=0.92 * thick, color=COLORS[index % len(COLORS)])
        for axes, values, write in (
            (pixels, row, percent),
            (images, data.images[order], '{:,}'.format),
        ):
            bars = axes.barh(places, values, label=data.name, **style)
            labels = [write(value) if value else 'never' for value in values]
            axes.bar_label(bars, labels, padding=3, fontsize=7.5, color=INK)
    for axes in (pixels, images):
        axes.set_xlim(0, 1.12 * axes.get_xlim()[1])  # room for the numbers
        axes.grid(axis='x', color=FAINT, lw=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(which='both', colors=INK, length=0)
        axes.spines[:].set_visible(False)
    images.xaxis.set_major_locator(MaxNLocator(integer=True))
    pixels.xaxis.set_major_formatter(lambda x, _: f'{x:g} %')
    pixels.set_yticks(range(len(names)), names, fontsize=10)
    pixels.set_ylim(len(names) - 0.4, -0.6)
    handles, labels = images.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc='outside lower center', ncols=len(labels), frameon=False
    )
    figure.savefig(path, format='png')
