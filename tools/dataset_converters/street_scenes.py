"""Make street scenes with annotations, in ADE20K's folder layout.

They come from a seed and need no download. OUT gets `images` and `annotations`, each
with `training` and `validation`; annotations number the classes from 1, 0 is "other".
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.progress import Progress
from streets.folder import write_scenes
from streets.scenes import SCENE_SIZE

from mmseg_twins.cli import common as cli


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('out', type=Path, metavar='OUT', help='new or empty folder')
    parser.add_argument(
        '--training',
        type=int,
        default=240,
        metavar='N',
        help='scenes to train on (default: %(default)s)',
    )
    parser.add_argument(
        '--validation',
        type=int,
        default=48,
        metavar='N',
        help='scenes held out (default: %(default)s)',
    )
    parser.add_argument(
        '--seed', type=int, default=0, help='equal seeds give equal scenes'
    )
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        default=SCENE_SIZE,
        metavar=('WIDTH', 'HEIGHT'),
        help='in pixels (default: %(default)s)',
    )
    return parser


def main() -> None:
    """Parses the arguments and writes the scenes."""
    parser = make_parser()
    args = parser.parse_args()
    total = args.training + args.validation
    with cli.one_sentence_errors(parser), Progress(transient=True) as progress:
        task = progress.add_task('scenes', total=total)
        write_scenes(
            args.out,
            training=args.training,
            validation=args.validation,
            seed=args.seed,
            size=tuple(args.size),
            progress=lambda done, _: progress.update(task, completed=done),
        )
    print(f'{total} scenes are in {args.out}')


if __name__ == '__main__':
    main()
