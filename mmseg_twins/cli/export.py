"""Export a trained segmentor to one file: the command ``tools/export_onnx.py``."""

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
    describe_resizing,
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
    TOLERANCE_FP16,
    DifferenceError,
    Predict,
    compare,
    difference_table,
    has_openvino,
    latency_table,
    load_onnx,
    load_openvino,
    load_program,
    predict_logits,
)
from ..apis.loading import build_segmentor, load_weights
from ..checkpoints.writing import check_writable, replacing
from ..interrupts import ending
from . import common as cli
from . import program

DESCRIPTION = """\
Export a segmentor to one file: ONNX, or torch.export's .pt2.

The graph maps images to logits, bilinearly upsampled to the images' size as by
mmsegmentation's predict, or to classes. Its results are compared with PyTorch's before
OUT is written. With --dynamic, one file accepts any number and size of images.
Auxiliary heads are left out.
"""
EPILOG = """\
examples:
  python tools/export_onnx.py configs/NAME.py work_dirs/NAME/iter_160000.pth NAME.onnx
  python tools/export_onnx.py configs/NAME.py CHECKPOINT NAME.onnx --dynamic \\
      --output classes --embed-preprocessing
  python tools/export_onnx.py configs/NAME.py none NAME.onnx --latency

exit status: 0 if OUT was written; 1 if its results differ from PyTorch's, and nothing
was written; 2 for invalid arguments or files.
"""
#: Stands for random weights instead of a checkpoint.
NO_CHECKPOINT = 'none'
SUFFIXES = ('.onnx', '.pt2')
OPSETS = range(18, 24)
TARGETS = ('cpu', 'gpu')


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=program('export_onnx.py'),
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_config_arguments(parser)
    parser.add_argument(
        'checkpoint',
        help=f'path or URL of the checkpoint, or `{NO_CHECKPOINT}` for random weights',
    )
    parser.add_argument('out', metavar='OUT', help='output file, .onnx or .pt2')
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
        help='accept any number, height and width of images',
    )
    parser.add_argument(
        '--size',
        type=cli.positive,
        nargs=2,
        default=(512, 512),
        metavar=('H', 'W'),
        help='height and width of the images in pixels; with --dynamic, only for the '
        'first comparison and --latency (default: 512 512)',
    )
    parser.add_argument(
        '--batch-size',
        type=cli.positive,
        default=1,
        metavar='N',
        help='number of images; with --dynamic, as for --size (default: 1)',
    )
    parser.add_argument(
        '--embed-preprocessing',
        action='store_true',
        help="take uint8 RGB images (N, H, W, 3) and normalize them with the config's "
        'mean and std inside the graph; without this option, the input is float32 '
        '(N, 3, H, W), normalized. Resizing is never inside',
    )
    parser.add_argument(
        '--fp16-weights',
        action='store_true',
        help='store the weights as float16, which halves the file, and compute in '
        f'float32; logits may then differ by {TOLERANCE_FP16:g} of the largest logit; '
        'ONNX only',
    )
    parser.add_argument(
        '--target',
        choices=TARGETS,
        default='cpu',
        help='optimize the ONNX file for this device: cpu computes large 3x3 '
        "convolutions by Winograd's algorithm, gpu leaves them plain (default: cpu)",
    )
    parser.add_argument(
        '--opset',
        type=int,
        choices=OPSETS,
        metavar='N',
        help=f'ONNX opset version, {OPSETS[0]} to {OPSETS[-1]} (default: chosen by '
        'PyTorch)',
    )
    parser.add_argument(
        '--latency',
        action='store_true',
        help=f'time the file and PyTorch on the CPU, {RUNS} runs each in turns; ONNX '
        'also in OpenVINO, if it is installed, after the same comparison',
    )
    parser.add_argument('--force', action='store_true', help='replace OUT if it exists')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit status.

    Raises:
        SystemExit: with status 1 if the results differ, and 2 for invalid arguments or
            files.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    path = Path(args.out)
    with cli.one_sentence_errors(parser), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of mmsegmentation and PyTorch
        check_writable(path, force=args.force, suffixes=SUFFIXES)
        if path.suffix == '.onnx':
            require_deploy()
        elif args.opset is not None:
            raise ValueError('--opset: only for ONNX, but OUT ends in .pt2')
        elif args.fp16_weights:
            raise ValueError('--fp16-weights: only for ONNX, but OUT ends in .pt2')
        cfg = cli.read_config(args)
        use_package_heads(cfg)
        segmentor = build_segmentor(cfg)
        if args.checkpoint == NO_CHECKPOINT:
            with quiet():
                torch.manual_seed(0)
                segmentor.init_weights()
            print('weights: random')
        else:
            load_weights(segmentor, cli.require_checkpoint(args.checkpoint))
        form = prepare(
            segmentor, output=args.output, embed_preprocessing=args.embed_preprocessing
        )
        if args.embed_preprocessing:
            print(f'images: normalized inside; {describe_resizing(cfg)}')
        metadata = describe_model(
            cfg,
            segmentor,
            checkpoint=args.checkpoint,
            output=args.output,
            embed_preprocessing=args.embed_preprocessing,
        )
        try:
            with replacing(path, force=args.force) as temporary, ending(temporary):
                export(args, path.suffix, temporary, segmentor, form, metadata)
        except DifferenceError as error:
            parser.exit(1, f'{parser.prog}: error: {error}; nothing was written\n')
    print(f'wrote {path} ({path.stat().st_size / 1e6:.1f} MB)')
    return 0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence mmengine's log of the initialization of each parameter."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')
    try:
        yield
    finally:
        logger.setLevel(level)


def export(
    args: argparse.Namespace,
    suffix: str,
    path: Path,
    segmentor: EncoderDecoder,
    form: ExportForm,
    metadata: dict[str, str],
) -> None:
    """Write the file, compare it with the segmentor, and time both if requested.

    Raises:
        DifferenceError: the file's results differ from the segmentor's.
    """
    start, (height, width) = time.perf_counter(), args.size
    given = (args.batch_size, height, width)
    image = example_image(form, *given)
    predict_logits(segmentor, form, image)  # raises if the image is too small
    program = trace(
        form,
        batch=args.batch_size,
        height=height,
        width=width,
        dynamic=args.dynamic,
        for_cpu=suffix == '.onnx' and args.target == 'cpu',
    )
    threads = torch.get_num_threads()
    predicts: dict[str, Predict] = {}
    if suffix == '.onnx':
        write_onnx(
            program,
            path,
            metadata,
            output=args.output,
            opset=args.opset,
            fp16_weights=args.fp16_weights,
        )
        predicts['onnxruntime'] = load_onnx(path, threads)
        if args.latency and has_openvino():
            predicts['OpenVINO'] = load_openvino(path, threads)
    else:
        write_program(program, path, metadata)
        predicts['torch.export'] = load_program(path)
    print(f'exported in {time.perf_counter() - start:.0f} s')
    sizes = (given, *(SIZES if args.dynamic else ()))
    for name, predict in predicts.items():
        differences = [
            compare(predict, segmentor, form, size, fp16_weights=args.fp16_weights)
            for size in sizes
        ]
        print(f'{name}:\n{difference_table(differences)}')
        wrong = sum(not one.passes for one in differences)
        if wrong:
            raise DifferenceError(
                f'in {name}, the results of the file differ from the segmentor at '
                f'{wrong} of {len(sizes)} sizes'
            )
    if args.latency:
        predicts['PyTorch'] = partial(predict_logits, segmentor, form)
        print(latency_table(predicts, image))
