"""Compare trainings: loss and mean IoU over iterations and over minutes.

Reads the logs in their work dirs; those of a resumed training are joined. Minutes are
the times of training iterations in the log added up, without evaluations.
"""

from __future__ import annotations

import mmseg_twins  # noqa: F401, handles Ctrl-C while the rest is imported

# isort: split
import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmseg_twins.checkpoints.writing import check_writable, replacing
from mmseg_twins.cli import common as cli
from mmseg_twins.interrupts import run as run_program

# Distinguishable for readers with color blindness, too.
COLORS = ('#0072b2', '#e69f00', '#56b4e9', '#cc79a7')
INK, FAINT = '#2b2b33', '#e4e4ea'
NOTE = dict(textcoords='offset points', fontsize=10)


@dataclass
class Run:
    """The logs of one training; all but the memory are by iteration.

    Attributes:
        miou: mean IoU of the evaluations, in percent.
        loss: training loss.
        minutes: minutes from the first iteration, at each entry of ``loss``.
        memory: peak of memory on the GPU, in MB; None if it is not in the log.
    """

    miou: dict[int, float]
    loss: dict[int, float]
    minutes: dict[int, float]
    memory: int | None

    def minutes_at(self, steps: Sequence[int]) -> np.ndarray:
        """Return the minutes of training up to iterations."""
        return np.interp(steps, [0, *self.minutes], [0, *self.minutes.values()])


def read_run(folder: Path) -> Run:
    """Read a training's logs in its work dir.

    Raises:
        FileNotFoundError: there is no log.
        ValueError: the logs have no evaluation.
    """
    logs = sorted(folder.glob('*/vis_data/scalars.json'))
    if not logs:
        raise FileNotFoundError(
            f'{str(folder)!r} has no */vis_data/scalars.json: it is not the work dir '
            'of a training'
        )
    miou: dict[int, float] = {}
    loss: dict[int, float] = {}
    seconds: dict[int, float] = {}  # of one iteration
    memory: list[int] = []
    for log in logs:
        lines = list(map(json.loads, log.read_text().splitlines()))
        # Iterations that a resumed training repeats replace the earlier ones.
        first = min((line['step'] for line in lines if 'loss' in line), default=0)
        for values in (miou, loss, seconds) if first else ():
            for step in [step for step in values if step >= first]:
                del values[step]
        latest = 0
        for line in lines:
            if 'mIoU' in line:
                # A training by epochs logs its evaluations by epoch.
                miou[max(line['step'], latest)] = line['mIoU']
            elif 'loss' in line:
                latest = line['step']
                loss[latest], seconds[latest] = line['loss'], line['time']
                memory += [line['memory']] if 'memory' in line else []
    if not miou:
        raise ValueError(f'the training in {str(folder)!r} has no evaluation yet')
    spent = np.cumsum(np.diff([0, *seconds]) * list(seconds.values())) / 60
    minutes = dict(zip(seconds, spent.tolist(), strict=True))
    return Run(miou, loss, minutes, max(memory, default=None))


def read_runs(given: Sequence[str]) -> dict[str, list[Run]]:
    """Read the trainings given as ``NAME=WORK_DIR``.

    Raises:
        FileNotFoundError: a folder is not a work dir.
        ValueError: an argument is not of this form, or trainings of one name were
            evaluated at different iterations.
    """
    runs: dict[str, list[Run]] = {}
    for pair in given:
        name, _, folder = pair.partition('=')
        if not (name and folder):
            raise ValueError(
                f'{pair!r} is not of the form NAME=WORK_DIR, such as tuned=work_dirs/x'
            )
        group = runs.setdefault(name, [])
        group.append(read_run(Path(folder)))
        if group[0].miou.keys() != group[-1].miou.keys():
            raise ValueError(
                f'{name}: the trainings were evaluated at different iterations, so '
                'they cannot be averaged; give them different names'
            )
    if len(runs) > len(COLORS):
        raise ValueError(f'{len(runs)} names; give at most {len(COLORS)}')
    return runs


def iterations_to_reach(run: Mapping[int, float], miou: float) -> int | None:
    """Return the iteration of the first evaluation that reaches a mean IoU, if any."""
    return next((step for step, value in run.items() if value >= miou), None)


def draw(
    path: Path, runs: Mapping[str, Sequence[Run]], *, title: str, reach: float | None
) -> None:
    """Draw mean IoU and loss over iterations and, if logged, over minutes.

    Several trainings of one name are thin lines, and their mean is a thick one.

    Args:
        path: PNG file to write.
        runs: trainings by name.
        reach: a mean IoU in percent to mark, with the iteration that first reached it.
    """
    has_losses = all(run.loss for group in runs.values() for run in group)
    rows = columns = 2 if has_losses else 1
    size = (12, 7.4) if has_losses else (8.6, 4.6)
    figure = Figure(size, dpi=130, layout='constrained')
    panels = figure.subplots(rows, columns, squeeze=False, sharex='col')
    figure.suptitle(title, fontsize=13, weight='bold', color=INK)
    for (name, group), color in zip(runs.items(), COLORS, strict=False):
        draw_miou(panels[0, 0], name, group, color, reach=reach)
        if has_losses:
            draw_miou(panels[0, 1], name, group, color, reach=None, by_minutes=True)
            draw_loss(panels[1, 0], group, color)
            draw_loss(panels[1, 1], group, color, by_minutes=True)
    if reach:
        panels[0, 0].axhline(reach, color=INK, lw=0.9, ls=':')
        panels[0, 0].annotate(
            f'{reach:g} %', (0, reach), xytext=(3, 3), color=INK, **NOTE
        )
    panels[0, 0].set_title('mean IoU on held-out images (%)', fontsize=11, loc='left')
    for axes in panels[0]:
        axes.set_ylim(0, None)
    panels[0, -1].legend(frameon=False, labelcolor='linecolor', loc='lower right')
    if has_losses:
        panels[1, 0].set_title('training loss', fontsize=11, loc='left')
    for column, unit in zip(
        panels.T, ('iteration', 'minutes of training'), strict=False
    ):
        column[-1].set_xlabel(unit, fontsize=10, color=INK)
        column[-1].set_xlim(0, None)
    for axes in panels.flat:
        axes.grid(color=FAINT, lw=0.8)
        axes.tick_params(colors=INK, labelsize=9, length=0)
        axes.spines[:].set_visible(False)
    figure.savefig(path, format='png')


def draw_miou(
    axes: Axes,
    name: str,
    group: Sequence[Run],
    color: str,
    *,
    reach: float | None,
    by_minutes: bool = False,
) -> None:
    """Draw the evaluations of the trainings of one name."""
    steps = list(group[0].miou)
    mean = np.mean([list(run.miou.values()) for run in group], axis=0)
    places = [run.minutes_at(steps) if by_minutes else np.array(steps) for run in group]
    middle = np.mean(places, axis=0)
    label = f'{name} {mean[-1]:.1f}'
    axes.plot(
        middle, mean, color=color, lw=2.6, marker='o', ms=4, zorder=3, label=label
    )
    for run, place in zip(group, places, strict=True) if len(group) > 1 else ():
        axes.plot(place, list(run.miou.values()), color=color, lw=1, alpha=0.55)
    first = reach and iterations_to_reach(dict(zip(steps, mean, strict=True)), reach)
    if first:
        axes.plot([first, first], [0, reach], color=color, lw=1.2, ls=':')
        axes.annotate(f'{first}', (first, 0), xytext=(3, 4), color=color, **NOTE)


def draw_loss(
    axes: Axes, group: Sequence[Run], color: str, *, by_minutes: bool = False
) -> None:
    """Draw the slightly smoothed losses of the trainings of one name."""
    for run in group:
        steps, values = list(run.loss), np.array(list(run.loss.values()))
        width = max(1, len(values) // 25)
        smooth = np.convolve(
            np.pad(values, (width - 1, 0), mode='edge'), np.ones(width) / width, 'valid'
        )
        axes.plot(
            list(run.minutes.values()) if by_minutes else steps,
            smooth,
            color=color,
            lw=2 if len(group) == 1 else 1,
        )


def table(runs: Mapping[str, Sequence[Run]], reach: float | None) -> str:
    """Return a line for each training: its last mean IoU, minutes and memory."""
    width = max(map(len, runs))
    lines = []
    for name, group in runs.items():
        for run in group:
            last = max(run.miou)
            text = f'{name:{width}}  {run.miou[last]:5.1f} % at {last}'
            if run.loss:
                text += f'; {run.minutes_at([last])[0]:.1f} minutes'
            if run.memory is not None:
                text += f'; {run.memory} MB'
            if reach:
                first = iterations_to_reach(run.miou, reach)
                text += f'; {reach:g} % first at {first or "no evaluation"}'
            lines.append(text)
    return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status 0, or exit with 2 for wrong arguments."""
    parser = argparse.ArgumentParser(
        prog='compare_runs.py',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'runs',
        nargs='+',
        metavar='NAME=WORK_DIR',
        help='a training; several of one name, such as with several seeds, are '
        'averaged',
    )
    parser.add_argument(
        '--out', type=Path, metavar='FILE.png', help='draw the curves to this file'
    )
    parser.add_argument(
        '--reach',
        type=float,
        metavar='PERCENT',
        help='report the first evaluation that reached this mean IoU',
    )
    parser.add_argument(
        '--title', default='Trainings compared', help='title of the figure'
    )
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
    sys.exit(run_program(main))
