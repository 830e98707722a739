"""Try the package in a few minutes: make street scenes, train on them, look at it.

Draws scenes in ADE20K's folder layout, trains the model of configs/demo on them from
scratch, evaluates it on scenes that it has not seen, and writes two pictures. What an
earlier quickstart left is moved to a folder of its own, and nothing is deleted.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from mmengine.config import Config
from streets import quickstart
from streets.folder import write_scenes

from mmseg_twins.cli import common as cli

CONFIG = Path(__file__).parents[2] / 'configs' / 'demo' / 'twins_svt_fpn_streets.py'


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/quickstart'),
        help='folder for scenes, training and pictures (default: %(default)s)',
    )
    parser.add_argument(
        '--seed',
        type=int,
        default=0,
        help='of the scenes and of the training (default: %(default)s)',
    )
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
        help='scenes held out, at least 6 (default: %(default)s)',
    )
    parser.add_argument(
        '--max-iters',
        type=int,
        metavar='N',
        help="iterations of training (default: the config's)",
    )
    return parser


def main() -> None:
    """Parses the arguments and does it all."""
    parser = make_parser()
    args = parser.parse_args()
    start = time.perf_counter()
    with cli.one_sentence_errors(parser):
        quickstart.check_numbers(args.validation, args.max_iters)
        cfg = quickstart.with_iterations(Config.fromfile(CONFIG), args.max_iters)
        moved = quickstart.set_aside(args.work_dir)
        if moved is not None:
            say(f'what an earlier run left is now in {moved}')
        data_root = args.work_dir / 'data'
        say(f'drawing {args.training + args.validation} scenes into {data_root}')
        write_scenes(
            data_root,
            training=args.training,
            validation=args.validation,
            seed=args.seed,
            progress=show_progress,
        )
    drawn = time.perf_counter()
    say(f'training {cfg.train_cfg.max_iters} iterations, evaluating on the way')
    runner = cli.build_runner(
        quickstart.use_folder(cfg, args.work_dir, data_root, seed=args.seed)
    )
    runner.train()
    trained = time.perf_counter()
    say('drawing the pictures')
    try:
        result = quickstart.show_results(runner, args.work_dir)
    except quickstart.TrainingError as error:
        sys.exit(f'{parser.prog}: error: {error}; its log is in {runner.log_dir}')
    end = time.perf_counter()
    say(
        f'done in {(end - start) / 60:.1f} minutes (scenes {drawn - start:.0f} s, '
        f'training {trained - drawn:.0f} s, pictures {end - trained:.0f} s)\n\n'
        f'{result.table()}\n\n'
        f'predictions: {result.scenes}\n'
        f'curves:      {result.curves}\n'
        f'checkpoint:  {result.checkpoint}'
    )


def say(text: str) -> None:
    """Prints a line of the quickstart's own."""
    print(f'[quickstart] {text}', flush=True)


def show_progress(done: int, total: int) -> None:
    """Counts the scenes on one line of a terminal, or now and then in a log."""
    if sys.stdout.isatty():
        print(f'\r{done} of {total}', end='\n' if done == total else '', flush=True)
    elif done % 100 == 0 or done == total:
        say(f'{done} of {total} scenes')


if __name__ == '__main__':
    main()
