"""Draws what attending to padding does to the features of mmsegmentation's SVT.

A command of its own: `python -m streets.padding_mask -h`.

Windows of 7 cover a map whose sides are no multiples of 7 only if it is padded. The
official code and mmsegmentation's built-in mark padding in a mask with
``mask[:, -pad:]``, which marks every token where ``pad`` is 0; a mask that is the same
everywhere separates nothing. So padding is masked where both sides have some, and
attended to where only one side has.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from benchmarking.cases import Case
from benchmarking.models import (
    BUILTIN,
    PACKAGE,
    build_model,
    load_weights,
    make_weights,
)
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from mmseg_twins.checkpoints.atomic import check_writable, replacing
from mmseg_twins.cli import common as cli

VARIANT = 'svt-s'
WINDOW = 7
STRIDES = (4, 8, 16, 32)
SIZES = {
    (448, 448): 'no side is padded',
    (512, 512): 'both sides are padded',
    (448, 512): 'one side is padded',
}

INK, FAINT, EQUAL = '#2b2b33', '#c4c4cc', '#f3f6fa'
TOKEN, MASKED, ATTENDED = '#c0d6ec', '#e4e4ea', '#d6451f'


def padding(length: int, window_size: int = WINDOW) -> int:
    """Tokens that are missing to a multiple of the window."""
    return -length % window_size


def compare(
    sizes: Sequence[tuple[int, int]], seed: int = 0
) -> dict[tuple[int, int], list[Tensor]]:
    """Runs the built-in's backbone and the package's on the same weights and images.

    Args:
        sizes: heights and widths of the images, in pixels.
        seed: of weights and images, which are random.

    Returns:
        For each size, a map for each stage, (H, W): the length of the difference of
        the features at a position, in units of the features' RMS length.
    """
    case = Case(VARIANT, 'none', 'inference', 'fp32', 1, *sizes[0])
    weights = make_weights(case, seed)
    models = []
    for implementation in (PACKAGE, BUILTIN):
        model, _ = build_model(implementation, case)
        load_weights(model, weights)
        models.append(model.eval())
    generator = torch.Generator().manual_seed(seed)
    differences = {}
    for size in sizes:
        image = torch.randn(1, 3, *size, generator=generator)
        with torch.inference_mode():
            ours, theirs = (model(image) for model in models)
        differences[size] = [
            (a - b).norm(dim=1)[0] / a.norm(dim=1).square().mean().sqrt()
            for a, b in zip(ours, theirs, strict=True)
        ]
    return differences


def relative_rms(difference: Tensor) -> float:
    """RMS of a stage's difference, over the RMS of its features."""
    return float(difference.square().mean().sqrt())


def draw(path: Path, differences: Mapping[tuple[int, int], Sequence[Tensor]]) -> None:
    """Draws, for each size, what is padded and where the features differ.

    Args:
        path: PNG file to write.
        differences: what :func:`compare` returns, for sizes of ``SIZES``.
    """
    colormap = colormaps['YlOrRd'].with_extremes(under=EQUAL)
    colours = ScalarMappable(LogNorm(1e-3, 1), colormap)
    figure = Figure(figsize=(10.4, 6.9), dpi=100, facecolor='white')
    grid = figure.subplots(len(differences), 5, width_ratios=(1.35, 1, 1, 1, 1))
    figure.subplots_adjust(0.015, 0.105, 0.985, 0.82, wspace=0.07, hspace=0.42)
    write = functools.partial(figure.text, color=INK)
    write(
        *(0.015, 0.955),
        'Where one side of a map is padded, the built-in SVT attends to the padding',
        fontsize=14,
        weight='bold',
    )
    write(
        *(0.015, 0.915),
        "mmsegmentation's SVT-S beside this package's: the same random weights, the "
        'same images',
        fontsize=10.5,
    )
    for row, (size, stages) in zip(grid, differences.items(), strict=True):
        draw_tokens(row[0], size)
        for number, (axes, stage) in enumerate(zip(row[1:], stages, strict=True), 1):
            axes.imshow(colours.to_rgba(stage.numpy()), interpolation='nearest')
            share = relative_rms(stage)
            wrong = share > 1e-4
            axes.set_title(
                f'stage {number}: {f"{share:.0%} off" if wrong else "equal"}',
                fontsize=10,
                color=ATTENDED if wrong else INK,
                weight='bold' if wrong else 'normal',
                pad=5,
            )
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color(FAINT)
    figure.legend(
        handles=[
            Patch(facecolor=TOKEN, label='token'),
            Patch(facecolor=MASKED, edgecolor=FAINT, label='padding, masked'),
            Patch(facecolor=ATTENDED, label='padding, attended to'),
        ],
        loc='center left',
        bbox_to_anchor=(0.005, 0.045),
        ncol=3,
        frameon=False,
        fontsize=9.5,
        handlelength=1.1,
        handleheight=1.1,
        columnspacing=1.3,
        handletextpad=0.5,
    )
    scale = figure.add_axes((0.63, 0.05, 0.325, 0.018))
    bar = figure.colorbar(colours, cax=scale, orientation='horizontal')
    bar.set_ticks([1e-3, 1e-2, 1e-1, 1], labels=['0.1%', '1%', '10%', '100%'])
    bar.ax.tick_params(labelsize=9, length=0, colors=INK)
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)
    write(0.6, 0.053, 'difference at a position', fontsize=9.5, ha='right')
    figure.savefig(path, format='png', pil_kwargs=dict(optimize=True))


def draw_tokens(axes: Axes, size: tuple[int, int]) -> None:
    """Draws the windows of the last stage's map, and what of them is padding."""
    height, width = (side // STRIDES[-1] for side in size)
    below, right = padding(height), padding(width)
    attended = bool(below) != bool(right)
    for y, x in np.ndindex(height + below, width + right):
        colour = ATTENDED if attended else MASKED
        if y < height and x < width:
            colour = TOKEN
        axes.add_patch(Rectangle((x, y), 1, 1, facecolor=colour, ec='white', lw=0.6))
    for y in range(0, height + below, WINDOW):
        for x in range(0, width + right, WINDOW):
            window = Rectangle((x, y), WINDOW, WINDOW, fill=False, ec=INK, lw=1.3)
            axes.add_patch(window)
    axes.set(xlim=(-0.3, 28), ylim=(21.3, -0.3), aspect='equal', anchor='W')
    axes.set_title(
        f'{size[0]}x{size[1]}: {SIZES[size]}\n',
        fontsize=10.5,
        color=ATTENDED if attended else INK,
        weight='bold',
        loc='left',
        pad=-5,
    )
    axes.text(
        -0.3,
        -0.9,
        f'{height}x{width} tokens in stage 4, windows of {WINDOW}',
        fontsize=9,
        color=INK,
    )
    axes.set_axis_off()


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog='padding_mask',
        description="Draw where mmsegmentation's built-in SVT differs, and print by "
        'how much: SVT-S, random weights and images, three sizes.',
    )
    parser.add_argument('out', type=Path, metavar='OUT.png', help='file to write')
    parser.add_argument(
        '--seed', type=int, default=0, help='of weights and images (default: 0)'
    )
    parser.add_argument('--force', action='store_true', help='replace OUT.png')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Compares, prints and draws.

    Args:
        argv: arguments; None for those of the process.

    Returns:
        The exit status, 0.

    Raises:
        SystemExit: with status 2 for wrong arguments.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    with cli.one_sentence_errors(parser):
        check_writable(args.out, force=args.force, suffixes=['.png'])
        differences = compare(list(SIZES), args.seed)
        with replacing(args.out, force=args.force) as temporary:
            draw(temporary, differences)
    for (height, width), stages in differences.items():
        figures = '  '.join(f'{relative_rms(stage):.1e}' for stage in stages)
        print(f'{height}x{width}, {SIZES[height, width]:22}  {figures}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
