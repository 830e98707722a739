"""The command ``benchmark.py``: arguments in, a table, JSON and a picture out."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import shutil
import signal
import sys
import warnings
from collections.abc import Sequence

import torch

from benchmarking.arguments import (
    add_output_arguments,
    check_output,
    described,
    image_size,
    positive,
)
from benchmarking.cases import DTYPES, HEADS, MODES, Case, expand
from benchmarking.errors import BenchmarkError
from benchmarking.machine import (
    describe_machine,
    load_of_others,
    measure_gemm_peak,
    usable_cores,
)
from benchmarking.measurement import Result, Settings, measure
from benchmarking.models import require_timm
from benchmarking.progress import Progress, interrupt
from benchmarking.report import as_json, format_report
from mmseg_twins.checkpoints.models import VARIANTS
from mmseg_twins.checkpoints.writing import replacing

DESCRIPTION = """\
Measure the package against mmsegmentation's built-in Twins on this machine.

Both run the same weights, each in a process of its own, in turns. Their outputs are
compared first: if they disagree, nothing is timed and the exit status is 1. The
table goes to stdout, progress to stderr. docs/benchmarks.md says how to read it.
"""
EPILOG = """\
examples:
  python tools/analysis_tools/benchmark.py
  python tools/analysis_tools/benchmark.py --variants svt-s --heads uperhead --modes inference train \\
      --dtypes fp32 bf16 --json svt-s.json --plot svt-s.png
  python tools/analysis_tools/benchmark.py --variants all --heads none --batch-sizes 1 4 16 \\
      --dtypes bf16 --compile --device cuda --markdown
"""


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog='benchmark.py',
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group('what is measured (every combination)')
    what.add_argument(
        '--variants',
        nargs='+',
        choices=[*VARIANTS, 'all'],
        default=['pcpvt-s', 'svt-s'],
        metavar='NAME',
        help=f'backbones: {", ".join(VARIANTS)}, or all (default: pcpvt-s svt-s)',
    )
    what.add_argument(
        '--heads',
        nargs='+',
        choices=HEADS,
        default=['none', 'uperhead'],
        metavar='NAME',
        help=f'{described(HEADS)} (default: none uperhead)',
    )
    what.add_argument(
        '--modes',
        nargs='+',
        choices=MODES,
        default=['inference'],
        metavar='NAME',
        help=f'{described(MODES)} (default: inference)',
    )
    what.add_argument(
        '--dtypes',
        nargs='+',
        choices=DTYPES,
        default=['fp32'],
        metavar='NAME',
        help=f'{described(DTYPES)} (default: fp32)',
    )
    what.add_argument(
        '--sizes',
        nargs='+',
        type=image_size,
        default=[(512, 512)],
        metavar='HxW',
        help='heights and widths of the images in pixels, at least 32 each; one '
        'number for a square (default: 512x512)',
    )
    what.add_argument(
        '--batch-sizes',
        nargs='+',
        type=positive,
        metavar='N',
        help='images at once (default: 1, and 2 in training)',
    )
    what.add_argument(
        '--compile',
        action='store_true',
        help='measure each implementation through torch.compile, too',
    )
    what.add_argument(
        '--no-timm',
        action='store_true',
        help="leave out timm's backbone, which is measured where timm is installed",
    )
    how = parser.add_argument_group('how')
    how.add_argument(
        '--device',
        choices=['auto', 'cpu', 'cuda'],
        default='auto',
        help='where (default: auto, the GPU if there is one)',
    )
    how.add_argument(
        '--runs',
        type=positive,
        default=10,
        metavar='N',
        help='timed runs of each implementation (default: 10)',
    )
    how.add_argument(
        '--warmup',
        type=positive,
        default=2,
        metavar='N',
        help='runs before those, of which the first counts operations (default: 2)',
    )
    how.add_argument(
        '--threads',
        type=positive,
        metavar='N',
        help="CPU threads of each implementation (default: PyTorch's choice)",
    )
    how.add_argument(
        '--inference-mode',
        action='store_true',
        help='infer under torch.inference_mode (default: torch.no_grad, as mmengine)',
    )
    how.add_argument(
        '--seed',
        type=int,
        default=0,
        metavar='N',
        help='of weights, images and labels (default: 0)',
    )
    add_output_arguments(parser)
    return parser


def choose_device(given: str, dtypes: Sequence[str]) -> torch.device:
    """The device that is asked for.

    Raises:
        BenchmarkError: it is not there, or does not do what is asked for.
    """
    has_gpu = torch.cuda.is_available()
    if given == 'cuda' and not has_gpu:
        raise BenchmarkError('--device cuda: PyTorch finds no GPU here')
    kind = ('cuda' if has_gpu else 'cpu') if given == 'auto' else given
    if kind == 'cpu' and 'fp16' in dtypes:
        raise BenchmarkError('--dtypes fp16 is for a GPU; on the CPU use bf16')
    return torch.device(kind)


def check_compiler(device: torch.device) -> None:
    """Checks that compiled code can be made.

    Raises:
        BenchmarkError: there is no C++ compiler, which it takes on the CPU.
    """
    names = (os.environ.get('CXX'), 'c++', 'g++', 'clang++', 'cl')
    if device.type == 'cpu' and not any(name and shutil.which(name) for name in names):
        raise BenchmarkError('--compile: there is no C++ compiler on the PATH')


class Outputs:
    """What is made of the results.

    Args:
        args: parsed arguments.
        context: what :func:`format_report` needs besides the results.
    """

    def __init__(self, args: argparse.Namespace, context: dict) -> None:
        self.args = args
        self.context = context
        self.date = datetime.datetime.now().astimezone().isoformat(timespec='seconds')
        self.results: list[Result] = []
        self.written = False

    def add(self, result: Result) -> None:
        """Takes a result; the JSON file has it from then on."""
        self.results.append(result)
        if self.args.json is None:
            return
        content = as_json(self.results, date=self.date, **self.context)
        force = self.args.force or self.written
        with replacing(self.args.json, force=force) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + '\n')
        self.written = True

    def finish(self) -> None:
        """Prints the table and draws the picture, of what there is."""
        if not self.results:
            return
        report = format_report(
            self.results, markdown=self.args.markdown, **self.context
        )
        print(report)
        if self.args.plot is not None:
            from benchmarking.plot import plot  # matplotlib takes its time

            machine = self.context['machine']
            path = self.args.plot
            with replacing(path, force=self.args.force) as temporary:
                plot(
                    self.results,
                    temporary,
                    title=machine.get('gpu', machine['cpu']),
                    kind=path.suffix[1:].lower(),
                )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: arguments; None for those of the process.

    Returns:
        The exit status: 0 if everything was measured; 1 if outputs disagree or
        something cannot be measured. After an interruption it is 128 and the number
        of the signal, as in a shell.

    Raises:
        SystemExit: with status 2 for arguments that are none.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    progress = Progress()
    earlier = signal.signal(signal.SIGTERM, interrupt)
    try:
        cases, device = prepare(args, parser)
        run(args, cases, device, progress, sys.argv[1:] if argv is None else argv)
    except (BenchmarkError, OSError) as error:
        progress.close()
        print(f'{parser.prog}: error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt as interruption:
        progress.close()
        print(f'{parser.prog}: error: interrupted', file=sys.stderr)
        return 128 + (interruption.args[0] if interruption.args else signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, earlier)
    return 0


def prepare(
    args: argparse.Namespace, parser: argparse.ArgumentParser
) -> tuple[list[Case], torch.device]:
    """Looks at everything that can be wrong before something is measured."""
    variants = list(VARIANTS) if 'all' in args.variants else args.variants
    try:
        cases, left_out = expand(
            variants=variants,
            heads=args.heads,
            modes=args.modes,
            dtypes=args.dtypes,
            sizes=args.sizes,
            batches=args.batch_sizes,
        )
        device = choose_device(args.device, args.dtypes)
        if args.compile:
            check_compiler(device)
        for path in (args.json, args.plot):
            if path is not None:
                check_output(path, force=args.force)
    except BenchmarkError as error:
        parser.exit(2, f'{parser.prog}: error: {error}\n')
    for reason in left_out:
        print(f'left out: {reason}', file=sys.stderr)
    return cases, device


def run(
    args: argparse.Namespace,
    cases: Sequence[Case],
    device: torch.device,
    progress: Progress,
    argv: Sequence[str],
) -> None:
    """Measures, and writes what was measured even if it ends early."""
    if args.threads:
        torch.set_num_threads(args.threads)
    if load_of_others() > 0.5 * usable_cores():
        print(
            f'other programs are busy here (load {load_of_others():.1f} on '
            f'{usable_cores()} cores): figures will be worse and scattered',
            file=sys.stderr,
        )
    settings = Settings(
        device=device.type,
        runs=args.runs,
        warmup=args.warmup,
        threads=args.threads,
        seed=args.seed,
        inference_mode=args.inference_mode,
        compile=args.compile,
        timm=not args.no_timm and 'none' in args.heads and has_timm(),
    )
    peaks = {}
    for dtype in dict.fromkeys(args.dtypes):
        progress(f'speed of a large matrix product in {dtype}')
        peaks[dtype] = measure_gemm_peak(dtype, device)
    outputs = Outputs(
        args,
        dict(
            machine=describe_machine(device, args.threads),
            peaks=peaks,
            settings=settings,
            command=shlex.join(['python', 'tools/analysis_tools/benchmark.py', *argv]),
        ),
    )
    try:
        with warnings.catch_warnings():
            # Those of mmsegmentation and mmengine are about their own affairs.
            warnings.simplefilter('ignore')
            for result in measure(cases, settings, progress=progress):
                outputs.add(result)
    finally:
        progress.close()
        outputs.finish()


def has_timm() -> bool:
    """Whether timm is installed."""
    try:
        require_timm()
    except BenchmarkError:
        return False
    return True
