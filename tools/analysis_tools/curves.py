"""Compares trainings: how many iterations each needs to reach a mean IoU.

A command of its own: `python -m curves -h`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mmseg_twins.checkpoints.writing import check_writable, replacing
from mmseg_twins.cli import common as cli

# Told apart by readers who do not see red or green, too.
COLORS = ('#0072b2', '#e69f00', '#56b4e9', '#cc79a7')
INK, FAINT = '#2b2b33', '#e4e4ea'


@dataclass
class History:
    """The evaluations of a training: iterations, and mean IoU in percent."""

    checks: Sequence[int]
    miou: Sequence[float]


def read_run(folder: Path) -> History:
    """Reads the log of the latest training in a work dir.

    Args:
        folder: of the training.

    Raises:
        FileNotFoundError: there is no log.
        ValueError: there is no evaluation in it.
    """
    logs = sorted(folder.glob('*/vis_data/scalars.json'))
    if not logs:
        raise FileNotFoundError(
            f'{str(folder)!r} has no */vis_data/scalars.json: it is no work dir of a '
            'training'
        )
    lines = map(json.loads, logs[-1].read_text().splitlines())
    evaluations = [(line['step'], line['mIoU']) for line in lines if 'mIoU' in line]
    if not evaluations:
        raise ValueError(f'the training in {str(folder)!r} was not evaluated yet')
    return History(*zip(*evaluations, strict=True))


def iterations_to_reach(history: History, miou: float) -> int | None:
    """The first evaluation that reached a mean IoU.

    Args:
        history: of a training.
        miou: in percent.

    Returns:
        Its iteration; None if none did.
    """
    for step, value in zip(history.checks, history.miou, strict=True):
        if value >= miou:
            return step
    return None


def draw_comparison(
    path: Path, runs: dict[str, Sequence[History]], *, title: str, reach: float | None
) -> None:
    """Draws the mean IoU of trainings over their iterations.

    Args:
        path: PNG file to write.
        runs: trainings by name; of several with one name, which have evaluations at
            the same iterations, the mean is a thick line.
        title: stands above.
        reach: a mean IoU in percent that is marked where it was reached first.
    """
    figure = Figure(figsize=(8.6, 4.6), dpi=130, facecolor='white')
    axes = figure.subplots()
    figure.subplots_adjust(0.075, 0.115, 0.8, 0.86)
    figure.suptitle(title, fontsize=13, weight='bold', color=INK, y=0.965)
    for (name, histories), color in zip(runs.items(), COLORS, strict=False):
        steps = histories[0].checks
        mean = np.mean([history.miou for history in histories], axis=0)
        axes.plot(steps, mean, color=color, lw=2.6, marker='o', ms=4, zorder=3)
        if len(histories) > 1:
            for history in histories:
                axes.plot(history.checks, history.miou, color=color, lw=1, alpha=0.55)
        axes.annotate(
            f'{name} {mean[-1]:.1f}',
            (steps[-1], mean[-1]),
            xytext=(8, 0),
            textcoords='offset points',
            va='center',
            fontsize=10,
            color=color,
            weight='bold',
        )
        first = reach and iterations_to_reach(History(checks=steps, miou=mean), reach)
        if first:
            axes.plot([first, first], [0, reach], color=color, lw=1.2, ls=':')
            axes.annotate(
                f'{first}',
                (first, 0),
                xytext=(3, 4),
                textcoords='offset points',
                fontsize=10,
                color=color,
            )
    if reach:
        axes.axhline(reach, color=INK, lw=0.9, ls=':')
        axes.annotate(
            f'{reach:g} %',
            (0, reach),
            xycoords=('axes fraction', 'data'),
            xytext=(3, 3),
            textcoords='offset points',
            fontsize=9,
            color=INK,
        )
    axes.set_title(
        'mean IoU on held-out images (%)', fontsize=11, color=INK, loc='left'
    )
    axes.set_xlabel('iteration', fontsize=10, color=INK)
    axes.set_xlim(0, max(h.checks[-1] for group in runs.values() for h in group))
    axes.set_ylim(0, None)
    axes.grid(color=FAINT, lw=0.8)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.spines[:].set_visible(False)
    figure.savefig(path, format='png')


def table(runs: dict[str, Sequence[History]], reach: float | None) -> str:
    """What each training reached, and when, a line each."""
    width = max(map(len, runs))
    lines = []
    for name, histories in runs.items():
        for history in histories:
            text = f'{name:{width}}  {history.miou[-1]:5.1f} % at {history.checks[-1]}'
            if reach:
                first = iterations_to_reach(history, reach)
                text += f'; {reach:g} % first at {first or "no evaluation"}'
            lines.append(text)
    return '\n'.join(lines)


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog='curves',
        description='Compare trainings by their mean IoU over the iterations.',
    )
    parser.add_argument(
        'runs',
        nargs='+',
        metavar='NAME=WORK_DIR',
        help='a training; several of one name, such as of several seeds, are averaged',
    )
    parser.add_argument(
        '--out', type=Path, metavar='FILE.png', help='draw the curves into this file'
    )
    parser.add_argument(
        '--reach',
        type=float,
        metavar='PERCENT',
        help='a mean IoU, to say which evaluation reached it first',
    )
    parser.add_argument('--title', default='Mean IoU of trainings')
    parser.add_argument(
        '--force', action='store_true', help='replace the file of --out if it exists'
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

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
        runs = read_runs(args.runs)
        if args.out is not None:
            check_writable(args.out, force=args.force, suffixes=['.png'])
            with replacing(args.out, force=args.force) as temporary:
                draw_comparison(temporary, runs, title=args.title, reach=args.reach)
    print(table(runs, args.reach))
    return 0


def read_runs(given: Sequence[str]) -> dict[str, list[History]]:
    """Reads the trainings that ``NAME=WORK_DIR`` arguments name.

    Raises:
        FileNotFoundError: a folder is no work dir.
        ValueError: an argument is no such pair, or trainings of one name were
            evaluated at different iterations.
    """
    runs: dict[str, list[History]] = {}
    for pair in given:
        name, equals, folder = pair.partition('=')
        if not (name and equals and folder):
            raise ValueError(f'{pair!r} is no NAME=WORK_DIR, such as tuned=work_dirs/x')
        history = read_run(Path(folder))
        group = runs.setdefault(name, [])
        if group and group[0].checks != history.checks:
            raise ValueError(
                f'{name}: the trainings were evaluated at different iterations, and '
                'have no mean'
            )
        group.append(history)
    if len(runs) > len(COLORS):
        raise ValueError(f'{len(runs)} names; {len(COLORS)} can be told apart')
    return runs


if __name__ == '__main__':
    sys.exit(main())
