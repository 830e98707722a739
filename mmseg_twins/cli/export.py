"""The command ``tools/export_onnx.py``: a trained segmentor as one checked file."""

from __future__ import annotations

import argparse
import contextlib
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from mmengine.logging import MMLogger
from mmseg.models.segmentors import EncoderDecoder

from ..apis.export import (
    OUTPUTS,
    ExportForm,
    describe_model,
    example_image,
    prepare,
    require_deploy,
    trace,
    use_package_heads,
    write_onnx,
    write_program,
)
from ..apis.exported import (
    RUNS,
    SIZES,
    DifferenceError,
    Predict,
    compare,
    difference_table,
    latency_table,
    load_onnx,
    load_program,
    measure,
    predict_logits,
)
from ..apis.loading import build_segmentor, load_weights
from ..checkpoints.writing import check_writable, replacing
from . import common as cli

DESCRIPTION = """\
Export a segmentor to one file: ONNX, or torch.export's .pt2.

The graph takes an image and returns the logits of its pixels, bilinearly upsampled to
the image as mmsegmentation's predict does, or their classes. It is compared with the
segmentor in PyTorch before OUT appears. With --dynamic one file is right for any
number and size of images. PCPVT and SVT of mmseg_twins with UPerHead or FPNHead can be
exported; the auxiliary head is left out.
"""
EPILOG = """\
examples:
  python tools/export_onnx.py configs/NAME.py work_dirs/NAME/iter_160000.pth NAME.onnx
  python tools/export_onnx.py configs/NAME.py CHECKPOINT NAME.onnx --dynamic \\
      --output classes --embed-preprocessing
  python tools/export_onnx.py configs/NAME.py none NAME.onnx --latency

exit status: 0 if OUT was written and the check passed; 1 if the check did not pass, and
nothing was written; 2 for wrong arguments or files.
"""
#: Stands for a checkpoint, for random weights.
NO_CHECKPOINT = 'none'
SUFFIXES = ('.onnx', '.pt2')
OPSETS = range(18, 24)


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog='export_onnx.py',
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_config_arguments(parser)
    parser.add_argument(
        'checkpoint',
        help=f'path or URL of the checkpoint, or `{NO_CHECKPOINT}` for random weights '
        '(to try the speed)',
    )
    parser.add_argument(
        'out', metavar='OUT', help='the file to write; ends in .onnx or .pt2'
    )
    parser.add_argument(
        '--output',
        choices=OUTPUTS,
        default='logits',
        help='logits: float32, (N, classes, H, W); classes: int64, (N, H, W) '
        '(default: logits)',
    )
    parser.add_argument(
        '--dynamic',
        action='store_true',
        help='leave number, height and width of the images open',
    )
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        default=(512, 512),
        metavar=('H', 'W'),
        help='height and width of the images in pixels; with --dynamic those that are '
        'checked first and timed (default: 512 512)',
    )
    parser.add_argument(
        '--batch-size',
        type=int,
        default=1,
        metavar='N',
        help='number of images at once; with --dynamic as --size (default: 1)',
    )
    parser.add_argument(
        '--embed-preprocessing',
        action='store_true',
        help="take uint8 RGB images (N, H, W, 3) and normalize them with the config's "
        'mean and std inside the graph; without it the input is float32 (N, 3, H, W), '
        'normalized',
    )
    parser.add_argument(
        '--opset',
        type=int,
        choices=OPSETS,
        metavar='N',
        help=f"version of ONNX's operators, {OPSETS[0]} to {OPSETS[-1]} (default: the "
        "exporter's choice)",
    )
    parser.add_argument(
        '--latency',
        action='store_true',
        help=f'time the file and PyTorch on the CPU, {RUNS} runs each in turns',
    )
    parser.add_argument('--force', action='store_true', help='replace OUT if it exists')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: arguments; None for those of the process.

    Returns:
        The exit status: 0, or 1 if the file does not compute what the segmentor does.

    Raises:
        SystemExit: with status 2 for arguments and files that are none.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    with cli.one_sentence_errors(parser), warnings.catch_warnings():
        # Those of mmsegmentation and PyTorch are about their own affairs.
        warnings.simplefilter('ignore')
        path = Path(args.out)
        check_writable(path, force=args.force, suffixes=SUFFIXES)
        if path.suffix == '.onnx':
            require_deploy()
        elif args.opset is not None:
            raise ValueError('--opset: only ONNX has opsets, and OUT ends in .pt2')
        if args.batch_size < 1:
            raise ValueError(f'--batch-size: {args.batch_size}; give 1 or more')
        cfg = cli.read_config(args)
        use_package_heads(cfg)
        segmentor = build_segmentor(cfg)
        if args.checkpoint == NO_CHECKPOINT:
            torch.manual_seed(0)
            with quiet():
                segmentor.init_weights()
        else:
            cli.require_checkpoint(args.checkpoint)
            load_weights(segmentor, args.checkpoint)
        form = prepare(
            segmentor,
            output=args.output,
            embed_preprocessing=args.embed_preprocessing,
        )
        check_size(segmentor, args.size)
        metadata = describe_model(
            cfg,
            segmentor,
            checkpoint=args.checkpoint,
            output=args.output,
            embed_preprocessing=args.embed_preprocessing,
        )
        if args.checkpoint == NO_CHECKPOINT:
            print('weights: random')
        try:
            with replacing(path, force=args.force) as temporary:
                export(args, path.suffix, temporary, segmentor, form, metadata)
        except DifferenceError as error:
            parser.exit(1, f'{parser.prog}: error: {error}; nothing was written\n')
    print(f'wrote {path} ({path.stat().st_size / 1e6:.1f} MB)')
    return 0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep mmengine's reports on each parameter from the user."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')
    try:
        yield
    finally:
        logger.setLevel(level)


def check_size(segmentor: EncoderDecoder, size: Sequence[int]) -> None:
    """Checks that the backbone takes images of a size.

    Raises:
        ValueError: it does not.
    """
    least = segmentor.backbone.sizes.min_image_side
    if min(size) < least:
        raise ValueError(
            f'--size: {size[0]} {size[1]}; both sides need at least {least} px'
        )


def export(
    args: argparse.Namespace,
    suffix: str,
    path: Path,
    segmentor: EncoderDecoder,
    form: ExportForm,
    metadata: dict[str, str],
) -> None:
    """Writes the file, compares it with the segmentor, and times it if that is asked.

    Raises:
        DifferenceError: the file does not compute what the segmentor does.
    """
    start, (height, width) = time.perf_counter(), args.size
    program = trace(
        form, batch=args.batch_size, height=height, width=width, dynamic=args.dynamic
    )
    if suffix == '.onnx':
        write_onnx(program, path, metadata, output=args.output, opset=args.opset)
        predict, name = load_onnx(path, torch.get_num_threads()), 'onnxruntime'
    else:
        write_program(program, path, metadata)
        predict, name = load_program(path), 'torch.export'
    print(f'exported in {time.perf_counter() - start:.0f} s')
    given = (args.batch_size, height, width)
    check(predict, segmentor, form, (given, *(SIZES if args.dynamic else ())))
    if args.latency:
        plain = partial(predict_logits, segmentor, form)
        seconds = measure(
            {name: predict, 'PyTorch': plain}, example_image(form, *given)
        )
        print(latency_table(seconds))


def check(
    predict: Predict,
    segmentor: EncoderDecoder,
    form: ExportForm,
    sizes: Sequence[tuple[int, int, int]],
) -> None:
    """Compares the file with the segmentor at every size and prints the table.

    Raises:
        DifferenceError: a difference is above its limit.
    """
    differences = [compare(predict, segmentor, form, size) for size in sizes]
    print(difference_table(differences))
    wrong = sum(not one.passes for one in differences)
    if wrong:
        raise DifferenceError(
            f'the file differs from the segmentor at {wrong} of {len(sizes)} sizes'
        )
