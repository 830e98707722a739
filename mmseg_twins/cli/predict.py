"""Look at results: `python tools/predict.py CONFIG CHECKPOINT IMAGES --out-dir DIR`.

For each image, DIR/overlays gets a picture of the classes over the image, with a
legend of names, colours and shares of the pixels, and DIR/labels a PNG of one channel
that has the number of each pixel's class: 0 is the first one, and no number means
ignored. Files appear complete or not at all, and none is replaced without --force.

The exit status is 0 if all images are done, 1 if some could not be read (they are
named, the others are done), 2 for wrong arguments, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from ..apis.overlay import draw_overlay
from ..apis.prediction import DEVICES, PredictionError, Predictor, choose_device
from . import common as cli
from .image_files import Job, find_images, plan_jobs, write_png


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog='predict.py',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', help='path of the config, such as configs/NAME.py')
    parser.add_argument(
        'checkpoint',
        help="path or URL of a segmentor's checkpoint, such as work_dirs/NAME/X.pth",
    )
    parser.add_argument(
        'images',
        nargs='+',
        metavar='image',
        help='image file, or folder of such',
    )
    parser.add_argument(
        '--out-dir', required=True, metavar='DIR', help='folder for the results'
    )
    parser.add_argument(
        '--opacity',
        type=fraction,
        default=0.6,
        metavar='0..1',
        help='of the classes over the image (default: %(default)s)',
    )
    parser.add_argument(
        '--recursive', action='store_true', help='search the folders in folders too'
    )
    parser.add_argument(
        '--force', action='store_true', help='replace results that are there'
    )
    parser.add_argument(
        '--tta',
        action='store_true',
        help="average predictions at the scales of the config's tta_pipeline, mirrored "
        'too',
    )
    parser.add_argument(
        '--device',
        choices=DEVICES,
        default='auto',
        help='where to compute; auto is a CUDA GPU where there is one (default: auto)',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=cli.OptionsAction,
        metavar='KEY=VALUE',
        help='settings that replace those of the config',
    )
    # What `cli.read_config` also wants to know of commands that run a runner.
    parser.set_defaults(work_dir=None, launcher='none', local_rank=0)
    return parser


def fraction(value: str) -> float:
    """A number from 0 to 1."""
    try:
        number = float(value)
    except ValueError:
        number = -1
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f'{value!r} is no number from 0 to 1')
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the arguments and predicts; returns the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        with cli.one_sentence_errors(parser):
            cfg = cli.read_config(args)
            cli.require_checkpoint(args.checkpoint)
            choose_device(args.device)
            if args.tta:
                cli.use_test_time_augmentation(cfg)
            out_dir = Path(args.out_dir)
            images = find_images(args.images, recursive=args.recursive, skip=out_dir)
            jobs = plan_jobs(images, out_dir, force=args.force)
            predictor = Predictor(cfg, args.checkpoint, device=args.device)
        return predict(parser, predictor, jobs, args)
    except OSError as error:
        parser.exit(1, f'{parser.prog}: error: {error}\n')
    except KeyboardInterrupt:
        parser.exit(130, f'{parser.prog}: interrupted; the files so far are whole\n')


def predict(
    parser: argparse.ArgumentParser,
    predictor: Predictor,
    jobs: list[Job],
    args: argparse.Namespace,
) -> int:
    """Predicts images one by one; returns the exit status."""
    failed = 0
    console = Console(stderr=True)
    for job in track(jobs, description='Predicting', console=console):
        try:
            result = predictor(job.image)
        except PredictionError as error:
            failed += 1
            print(f'{parser.prog}: {job.image} is skipped: {error}', file=sys.stderr)
            continue
        overlay = draw_overlay(
            result.image,
            result.labels,
            classes=predictor.classes,
            palette=predictor.palette,
            opacity=args.opacity,
        )
        write_png(job.labels, result.labels, force=args.force)
        write_png(job.overlay, overlay, force=args.force)
    skipped = f', {failed} skipped' if failed else ''
    print(f'{len(jobs) - failed} images done{skipped}; results are in {args.out_dir}')
    return 1 if failed else 0
