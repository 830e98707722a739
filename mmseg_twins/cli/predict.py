"""Predict images: `python tools/predict.py CONFIG CHECKPOINT IMAGES --out-dir DIR`.

Published segmentors, and folders written by save_pretrained, include their config:
`python tools/predict.py twins://upernet-svt-s-ade20k IMAGES --out-dir DIR`.

For each image, writes two PNG files: an overlay of the predicted classes on the image,
with a legend of names, colors and shares of the pixels, to DIR/overlays, and a
single-channel label map, with classes numbered from 0, to DIR/labels; --confidence adds
a map of the labels' probabilities. With sliding windows (--full-resolution, --window),
the results of a TIFF are TIFFs with the same georeference, written while the image is
read: memory grows with its width only. Writes are atomic and never overwrite a file
without --force.

exit status: 0 if all images were predicted; 1 if some could not be read, which are
named; 2 for invalid arguments; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from ..apis.load_model import find_segmentor, is_segmentor
from ..apis.overlay import draw_overlay
from ..apis.prediction import DEVICES, Prediction, Predictor, choose_device
from ..apis.rows import (
    RAW,
    EndOfRows,
    PredictionError,
    eight_bits,
    import_rasterio,
    is_tiff,
    write_png,
)
from ..apis.settings import slides_windows
from . import common as cli
from . import program
from .image_files import Job, find_images, plan_jobs


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=program('predict.py'),
        usage='%(prog)s [option ...] CONFIG CHECKPOINT IMAGE ... --out-dir DIR\n'
        '       %(prog)s [option ...] SEGMENTOR IMAGE ... --out-dir DIR',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_config_arguments(parser)
    parser.add_argument(
        'files',
        nargs='+',
        metavar='CHECKPOINT IMAGE',
        help="path, URL or name of a segmentor's checkpoint, such as "
        'work_dirs/NAME/X.pth, unless the first argument includes it; then image '
        'files or folders of images',
    )
    parser.add_argument(
        '--out-dir', required=True, metavar='DIR', help='folder for the results'
    )
    parser.add_argument('--no-overlay', action='store_true', help='write no overlays')
    parser.add_argument(
        '--opacity',
        type=fraction,
        default=0.6,
        metavar='0..1',
        help='opacity of the overlay; less makes it more transparent (default: '
        '%(default)s)',
    )
    parser.add_argument(
        '--recursive', action='store_true', help='search folders recursively'
    )
    parser.add_argument('--force', action='store_true', help='replace existing results')
    parser.add_argument(
        '--tta',
        action='store_true',
        help="average predictions over the scales and flips of the config's "
        'tta_pipeline (test-time augmentation)',
    )
    parser.add_argument(
        '--confidence',
        action='store_true',
        help="write the probability of each pixel's class as well, as 8-bit PNG files "
        'in DIR/confidence, where 255 is certain',
    )
    parser.add_argument(
        '--full-resolution',
        action='store_true',
        help='predict images at their own resolution in sliding windows, instead of '
        'resizing them to the test size of the config',
    )
    parser.add_argument(
        '--window',
        type=int,
        metavar='PX',
        help='side of these windows (default: the crop size of the config); implies '
        '--full-resolution',
    )
    parser.add_argument(
        '--stride',
        type=int,
        metavar='PX',
        help='step between these windows (default: two thirds of the window); implies '
        '--full-resolution',
    )
    parser.add_argument(
        '--bands',
        type=int,
        nargs='+',
        metavar='N',
        help='with windows: numbers of the bands that the model takes, from 1, with '
        'colors in the order red, green, blue (default: all but transparency)',
    )
    values = parser.add_mutually_exclusive_group()
    values.add_argument(
        '--value-range',
        type=float,
        nargs=2,
        metavar=('LOW', 'HIGH'),
        help='with windows: the values that become 0 and 255 in images of more than 8 '
        'bits',
    )
    values.add_argument(
        '--raw-values',
        dest='value_range',
        action='store_const',
        const=RAW,
        help='leave these values as they are, for models that were trained with them',
    )
    parser.add_argument(
        '--batch',
        type=int,
        default=1,
        metavar='N',
        help='number of windows, or of successive images of one size, in a batch '
        '(default: %(default)s)',
    )
    parser.add_argument(
        '--device',
        choices=DEVICES,
        default='auto',
        help='device to run on; auto is a CUDA GPU if there is one (default: auto)',
    )
    return parser


def fraction(value: str) -> float:
    """Parse a number from 0 to 1."""
    try:
        number = float(value)
    except ValueError:
        number = -1
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f'{value!r} is not a number from 0 to 1')
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        with cli.one_sentence_errors(parser):
            choose_device(args.device)
            if is_segmentor(args.config):
                cfg, checkpoint = find_segmentor(args.config)
                cli.override(cfg, args)
                images = args.files
            else:
                cfg = cli.read_config(args)
                checkpoint, *images = args.files
                cli.require_checkpoint(checkpoint)
            if args.tta:
                cli.use_test_time_augmentation(cfg)
            out_dir = Path(args.out_dir)
            if not images:
                parser.error('there are no images; give files or folders')
            found = find_images(images, recursive=args.recursive, skip=out_dir)
            sliding = dict(
                full_resolution=args.full_resolution,
                window=args.window,
                stride=args.stride,
            )
            slides = slides_windows(**sliding)
            jobs = plan_jobs(
                found,
                out_dir,
                force=args.force,
                confidence=args.confidence,
                overlays=not args.no_overlay,
                tiffs=slides,
            )
            chooses = args.bands or args.value_range
            if slides and (chooses or any(is_tiff(job.image) for job in jobs)):
                import_rasterio()  # raises before the model is built
            predictor = Predictor(
                cfg,
                checkpoint,
                device=args.device,
                confidence=args.confidence,
                batch=args.batch,
                bands=args.bands,
                value_range=args.value_range,
                **sliding,
            )
        return predict(parser, predictor, jobs, args)
    except OSError as error:
        parser.exit(1, f'{parser.prog}: error: {error}\n')
    except KeyboardInterrupt:
        parser.exit(
            130, f'{parser.prog}: interrupted; the results so far are complete\n'
        )


def predict(
    parser: argparse.ArgumentParser,
    predictor: Predictor,
    jobs: list[Job],
    args: argparse.Namespace,
) -> int:
    """Predict images and write the results; return the exit status."""
    failed = 0
    was_said = False
    with Progress(
        *Progress.get_default_columns(),
        MofNCompleteColumn(),
        console=Console(stderr=True),
    ) as bars:
        images = bars.add_task('Images', total=len(jobs))
        windows = bars.add_task('Windows', total=None, visible=False)

        def show(done: int, total: int) -> None:
            bars.update(windows, completed=done, total=total, visible=True)

        results: Iterator[Prediction | PredictionError | None]
        if predictor.slides:
            results = (predict_rows(job, predictor, args, show) for job in jobs)
        else:
            results = predictor.predict_all([job.image for job in jobs])
        for job, result in zip(jobs, results, strict=True):
            if isinstance(result, PredictionError):
                failed += 1
                said = f'{job.image} is skipped: {result}'
                if isinstance(result, EndOfRows):
                    said = str(result)
                print(f'{parser.prog}: {said}', file=sys.stderr)
            elif result is not None:
                if result.was_shrunk and not was_said:
                    was_said = True
                    said = shrinking(job.image, result)
                    print(f'{parser.prog}: {said}', file=sys.stderr)
                write(job, result, predictor, args)
            bars.advance(images)
    skipped = f', {failed} skipped' if failed else ''
    print(f'{len(jobs) - failed} images done{skipped}; results are in {args.out_dir}')
    return 1 if failed else 0


def predict_rows(
    job: Job,
    predictor: Predictor,
    args: argparse.Namespace,
    progress: Callable[[int, int], None],
) -> PredictionError | None:
    """Predict an image in windows and write the results; return the error, if any."""
    for path in job.targets:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        predictor.predict_file(
            job.image,
            job.labels,
            confidence=job.confidence,
            overlay=job.overlay,
            opacity=args.opacity,
            force=args.force,
            progress=progress,
        )
    except PredictionError as error:
        return error
    return None


def shrinking(image: Path, result: Prediction) -> str:
    """Return the message about an image that the test pipeline has shrunk."""
    height, width = result.labels.shape
    tested_height, tested_width = result.tested_size
    return (
        f'{image} has {width}x{height} px and is predicted at '
        f'{tested_width}x{tested_height} px, as are others above the test size of the '
        'config; --full-resolution (or --window PX) keeps all details'
    )


def write(
    job: Job, result: Prediction, predictor: Predictor, args: argparse.Namespace
) -> None:
    """Write the results of an image."""
    write_png(job.labels, result.labels, force=args.force)
    if job.confidence is not None and result.confidence is not None:
        write_png(job.confidence, eight_bits(result.confidence), force=args.force)
    if job.overlay is not None:
        overlay = draw_overlay(
            result.image,
            result.labels,
            classes=predictor.classes,
            palette=predictor.palette,
            opacity=args.opacity,
        )
        write_png(job.overlay, overlay, force=args.force)
