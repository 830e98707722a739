"""Show the effect of attention to padding on mmsegmentation's built-in SVT.

Maps whose sides are not multiples of 7 are padded to be divided into windows of 7. The
official code and the built-in mark padding with ``mask[:, -pad:]``, which marks every
token if ``pad`` is 0, and a constant mask masks nothing. So padding is masked if both
sides have some, and attended to if only one side has some.
"""

from __future__ import annotations

import mmseg_twins  # noqa: F401, handles Ctrl-C while the rest is imported

# isort: split
import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from mmseg.registry import MODELS
from torch import Tensor

from mmseg_twins.checkpoints.writing import check_writable, replacing
from mmseg_twins.cli import common as cli
from mmseg_twins.interrupts import run as run_program

WINDOW = 7
SIZES = {(448, 448): 'no side', (512, 512): 'both sides', (448, 512): 'one side'}
TOKEN, MASKED, ATTENDED = '#c0d6ec', '#e4e4ea', '#d6451f'


def compare(
    sizes: Sequence[tuple[int, int]], seed: int = 0
) -> dict[tuple[int, int], list[Tensor]]:
    """Run the built-in SVT-S and this package's with equal random weights and images.

    Args:
        sizes: heights and widths of the images in pixels.
        seed: seed of weights and images.

    Returns:
        For each size and stage, a map (H, W): the length of the difference between the
        features at a position, relative to the RMS length of the stage's features.
    """
    torch.manual_seed(seed)
    norm_cfg = dict(type='LN', eps=1e-5)  # the built-in's
    ours = MODELS.build(dict(type='mmseg_twins.SVT', arch='small', norm_cfg=norm_cfg))
    theirs = MODELS.build(
        dict(
            type='mmseg.SVT',
            embed_dims=[64, 128, 256, 512],
            num_heads=[2, 4, 8, 16],
            mlp_ratios=[4, 4, 4, 4],
            depths=[2, 2, 10, 4],
            sr_ratios=[8, 4, 2, 1],
            windiow_sizes=[7, 7, 7, 7],
            norm_after_stage=True,
            qkv_bias=True,
        )
    )
    with torch.no_grad():  # with initial weights, attention would be almost uniform
        for parameter in ours.parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.add_(0.1 * noise)
    theirs.load_state_dict(ours.state_dict())
    differences = {}
    for size in sizes:
        image = torch.randn(1, 3, *size)
        with torch.inference_mode():
            pairs = zip(ours.eval()(image), theirs.eval()(image), strict=True)
        differences[size] = [
            (a - b).norm(dim=1)[0] / a.norm(dim=1).square().mean().sqrt()
            for a, b in pairs
        ]
    return differences


def relative_rms(difference: Tensor) -> float:
    """Return the RMS of a stage's difference, relative to the RMS of its features."""
    return float(difference.square().mean().sqrt())


def draw(path: Path, differences: Mapping[tuple[int, int], Sequence[Tensor]]) -> None:
    """Draw the padding and the differences of features for each size in ``SIZES``."""
    colormap = colormaps['YlOrRd'].with_extremes(under='#f3f6fa')
    colors = ScalarMappable(LogNorm(1e-3, 1), colormap)
    figure = Figure(figsize=(10.4, 7.4), dpi=130, layout='constrained')
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    figure.suptitle(
        "Where one side of a map is padded, mmsegmentation's SVT attends to the padding"
        "\nFeatures of its SVT-S and of this package's, with equal random weights and "
        'images.\nTrained models meet this where exactly one side is a multiple of 28, '
        '56, 112 or 224 px, such as 512x672, but not at 512x512.',
        fontsize=11,
    )
    grid = figure.subplots(len(differences), 5, width_ratios=(1.35, 1, 1, 1, 1))
    for row, (size, stages) in zip(grid, differences.items(), strict=True):
        draw_tokens(row[0], size)
        for number, (axes, stage) in enumerate(zip(row[1:], stages, strict=True), 1):
            axes.imshow(colors.to_rgba(stage.numpy()), interpolation='nearest')
            share = relative_rms(stage)
            result = f'{100 * share:.0f} % off' if share > 1e-4 else 'equal'
            color = ATTENDED if share > 1e-4 else 'black'
            axes.set_title(f'stage {number}: {result}', fontsize=10, color=color)
            axes.set(xticks=[], yticks=[])
    bar = figure.colorbar(colors, ax=grid[:, 1:], location='bottom', aspect=60)
    bar.set_label('difference of the features at a position')
    bar.set_ticks([1e-3, 1e-2, 1e-1, 1], labels=['0.1 %', '1 %', '10 %', '100 %'])
    names = {
        'token': TOKEN,
        'padding, masked': MASKED,
        'padding, attended to': ATTENDED,
    }
    patches = [Patch(facecolor=color, label=name) for name, color in names.items()]
    figure.legend(handles=patches, loc='lower left', frameon=False, fontsize=9)
    figure.savefig(path, format='png', pil_kwargs=dict(optimize=True))


def draw_tokens(axes: Axes, size: tuple[int, int]) -> None:
    """Draw the windows of the last stage's map and their padding."""
    height, width = (side // 32 for side in size)
    below, right = -height % WINDOW, -width % WINDOW
    padding = ATTENDED if bool(below) != bool(right) else MASKED
    outer = Rectangle((0, 0), width + right, height + below, facecolor=padding)
    axes.add_patch(outer)
    axes.add_patch(Rectangle((0, 0), width, height, facecolor=TOKEN))
    axes.vlines(range(width + right + 1), 0, height + below, color='white', lw=0.6)
    axes.hlines(range(height + below + 1), 0, width + right, color='white', lw=0.6)
    for y in range(0, height + below, WINDOW):
        for x in range(0, width + right, WINDOW):
            axes.add_patch(Rectangle((x, y), WINDOW, WINDOW, fill=False, zorder=3))
    axes.set(xlim=(-0.3, 28), ylim=(21.3, -0.3), aspect='equal', anchor='W')
    axes.set_title(
        f'{size[0]}x{size[1]}: {SIZES[size]} padded\n'
        f'{height}x{width} tokens in stage 4',
        fontsize=10,
        loc='left',
    )
    axes.set_axis_off()


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print and draw; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('out', type=Path, metavar='OUT.png', help='file to write')
    parser.add_argument(
        '--seed', type=int, default=0, help='seed of weights and images (default: 0)'
    )
    parser.add_argument('--force', action='store_true', help='replace OUT.png')
    args = parser.parse_args(argv)
    with cli.one_sentence_errors(parser):
        check_writable(args.out, force=args.force, suffixes=['.png'])
        differences = compare(list(SIZES), args.seed)
        with replacing(args.out, force=args.force) as temporary:
            draw(temporary, differences)
    print('| image | padding | stage 1 | stage 2 | stage 3 | stage 4 |')
    print('| --- | --- | --: | --: | --: | --: |')
    for (height, width), stages in differences.items():
        shares = ' | '.join(f'{100 * relative_rms(stage):.1f} %' for stage in stages)
        print(f'| {height}x{width} | {SIZES[height, width]} | {shares} |')
    return 0


if __name__ == '__main__':
    sys.exit(run_program(main))
