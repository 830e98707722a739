"""Compare trainings: how many iterations each needs to reach a mean IoU."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mmseg_twins.checkpoints.writing import check_writable, replacing
from mmseg_twins.cli import common as cli

# Told apart by readers who do not see red or green, too.
COLORS = ('#0072b2', '#e69f00', '#56b4e9', '#cc79a7')
INK, FAINT = '#2b2b33', '#e4e4ea'

# Mean IoU in percent by iteration, of one training.
Run = dict[int, float]


def read_run(folder: Path) -> Run:
    """Read the evaluations of the latest training in a work dir.

    Raises:
        FileNotFoundError: There is no log.
        ValueError: There is no evaluation in it.
    """
    logs = sorted(folder.glob('*/vis_data/scalars.json'))
    if not logs:
        raise FileNotFoundError(
            f'{str(folder)!r} has no */vis_data/scalars.json: it is not the work dir '
            'of a training'
        )
    lines = map(json.loads, logs[-1].read_text().splitlines())
    run = {line['step']: line['mIoU'] for line in lines if 'mIoU' in line}
    if not run:
        raise ValueError(f'the training in {str(folder)!r} has no evaluation yet')
    return run


def read_runs(given: Sequence[str]) -> dict[str, list[Run]]:
    """Read the trainings that ``NAME=WORK_DIR`` arguments name.

    Raises:
        FileNotFoundError: A folder is not a work dir.
        ValueError: An argument is no such pair, or trainings of one name were
            evaluated at different iterations.
    """
    runs: dict[str, list[Run]] = {}
    for pair in given:
        name, _, folder = pair.partition('=')
        if not (name and folder):
            raise ValueError(f'{pair!r} is no NAME=WORK_DIR, such as tuned=work_dirs/x')
        group = runs.setdefault(name, [])
        group.append(read_run(Path(folder)))
        if group[0].keys() != group[-1].keys():
            raise ValueError(
                f'{name}: the trainings were evaluated at different iterations, so '
                'they have no mean'
            )
    if len(runs) > len(COLORS):
        raise ValueError(f'{len(runs)} names; give at most {len(COLORS)}')
    return runs


def iterations_to_reach(run: Mapping[int, float], miou: float) -> int | None:
    """Return the iteration of the first evaluation with a mean IoU, if there is one."""
    return next((step for step, value in run.items() if value >= miou), None)


def draw(
    path: Path, runs: Mapping[str, Sequence[Run]], *, title: str, reach: float | None
) -> None:
    """Draw mean IoU over iterations; several trainings of one name, and their mean.

    Args:
        path: PNG file to write.
        runs: Trainings by name.
        title: Stands above.
        reach: A mean IoU in percent to mark, and where it was reached first.
    """
    figure = Figure((8.6, 4.6), dpi=130, layout='constrained')
    axes = figure.subplots()
    figure.suptitle(title, fontsize=13, weight='bold', color=INK)
    note = dict(textcoords='offset points', fontsize=10)
    for (name, group), color in zip(runs.items(), COLORS, strict=False):
        steps = list(group[0])
        mean = np.mean([list(run.values()) for run in group], axis=0)
        axes.plot(steps, mean, color=color, lw=2.6, marker='o', ms=4, zorder=3)
        for run in group if len(group) > 1 else ():
            axes.plot(steps, list(run.values()), color=color, lw=1, alpha=0.55)
        style = dict(color=color, weight='bold', va='center', annotation_clip=False)
        end = (steps[-1], mean[-1])
        axes.annotate(f'{name} {mean[-1]:.1f}', end, xytext=(8, 0), **note, **style)
        first = reach and iterations_to_reach(
            dict(zip(steps, mean, strict=True)), reach
        )
        if first:
            axes.plot([first, first], [0, reach], color=color, lw=1.2, ls=':')
            axes.annotate(f'{first}', (first, 0), xytext=(3, 4), color=color, **note)
    if reach:
        axes.axhline(reach, color=INK, lw=0.9, ls=':')
        axes.annotate(f'{reach:g} %', (0, reach), xytext=(3, 3), color=INK, **note)
    axes.set_title('mean IoU on held-out images (%)', fontsize=11, loc='left')
    axes.set_xlabel('iteration', fontsize=10, color=INK)
    axes.set_xlim(0, max(max(run) for group in runs.values() for run in group))
    axes.set_ylim(0, None)
    axes.grid(color=FAINT, lw=0.8)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.spines[:].set_visible(False)
    figure.savefig(path, format='png')


def table(runs: Mapping[str, Sequence[Run]], reach: float | None) -> str:
    """Return what each training reached, and when, a line each."""
    width = max(map(len, runs))
    lines = []
    for name, group in runs.items():
        for run in group:
            last = max(run)
            text = f'{name:{width}}  {run[last]:5.1f} % at {last}'
            if reach:
                first = iterations_to_reach(run, reach)
                text += f'; {reach:g} % first at {first or "no evaluation"}'
            lines.append(text)
    return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status 0, or exit with 2 for wrong arguments."""
    parser = argparse.ArgumentParser(prog='compare_runs.py', description=__doc__)
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
        help='a mean IoU; reports which evaluation reached it first',
    )
    parser.add_argument('--title', default='Mean IoU of trainings')
    parser.add_argument(
        '--force', action='store_true', help='replace the file of --out if it exists'
    )
    args = parser.parse_args(argv)
    with cli.one_sentence_errors(parser):
        runs = read_runs(args.runs)
        if args.out is not None:
            check_writable(args.out, force=args.force, suffixes=['.png'])
            with replacing(args.out, force=args.force) as temporary:
                draw(temporary, runs, title=args.title, reach=args.reach)
    print(table(runs, args.reach))
    return 0


if __name__ == '__main__':
    sys.exit(main())
