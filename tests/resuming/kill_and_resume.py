"""Kill a training again and again, resume it, compare.

`python tests/resuming/kill_and_resume.py` needs no arguments.

Trains the quickstart's model, made small, twice: once without interruption, and once
killed at moments of seven kinds (in a step, in a validation, while a checkpoint is
written, ...) and resumed with `python tools/train.py CONFIG --resume` after each. Then
the checkpoints of both are compared bit by bit. Prints a table; the exit status is 1
where a kill was not survived or anything differs. A kill takes about ten seconds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from faults.trial import Trial

from mmseg_twins.cli import common as cli


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/kill_and_resume'),
        help='new or empty folder for data, logs and checkpoints '
        '(default: %(default)s)',
    )
    parser.add_argument(
        '--kills', type=int, default=28, help='how many (default: %(default)s)'
    )
    parser.add_argument(
        '--workers',
        type=int,
        default=0,
        help='processes that load data (default: %(default)s)',
    )
    parser.add_argument(
        '--seed', type=int, default=0, help='of the moments (default: %(default)s)'
    )
    return parser


def main() -> None:
    """Parses the arguments, runs the trial and prints its table."""
    parser = make_parser()
    args = parser.parse_args()
    with cli.one_sentence_errors(parser):
        trial = Trial(
            args.work_dir,
            root=Path(__file__).resolve().parents[2],
            kills=args.kills,
            workers=args.workers,
            seed=args.seed,
        )
    try:
        result = trial.run()
    except RuntimeError as error:
        parser.exit(1, f'{parser.prog}: error: {error}\n')
    print(result.table())
    parser.exit(0 if result.is_good else 1)


if __name__ == '__main__':
    main()
