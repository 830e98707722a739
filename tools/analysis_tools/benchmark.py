"""Benchmark against mmsegmentation's built-in Twins: ``benchmark.py --help``."""

from __future__ import annotations

import mmseg_twins  # noqa: F401, handles Ctrl-C while the rest is imported

# isort: split
import argparse
import datetime
import json
import os
import re
import shlex
import shutil
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from benchmarking.cases import DTYPES, HEADS, MODES, Case, Settings, expand
from benchmarking.machine import (
    available_memory,
    describe_machine,
    measure_gemm_peak,
    usable_cores,
)
from benchmarking.measurement import BenchmarkError, Result, measure
from benchmarking.models import BUILTIN, IMPLEMENTATIONS, PACKAGE, TIMM, has_timm
from benchmarking.report import as_json, format_report, plot
from rich.console import Console
from rich.progress import Progress

from mmseg_twins.checkpoints.models import VARIANTS
from mmseg_twins.checkpoints.writing import check_writable, replacing
from mmseg_twins.cli import common as cli
from mmseg_twins.errors import SettingError
from mmseg_twins.interrupts import run as run_program

DESCRIPTION = """\
Benchmark the package against mmsegmentation's built-in Twins on this machine.

Both run the same weights, each in a process of its own, in turns. Their outputs are
compared first: if they disagree, nothing is timed and the exit status is 1. The
table goes to stdout, progress to stderr. docs/benchmarks.md explains the table.
"""
EPILOG = """\
examples:
  python tools/analysis_tools/benchmark.py
  python tools/analysis_tools/benchmark.py --variants svt-s --heads uperhead \\
      --modes inference train --dtypes fp32 bf16 --json svt-s.json --plot svt-s.png
  python tools/analysis_tools/benchmark.py --variants svt-s --heads uperhead \\
      --implementations package --modes inference slide --sizes 512 1024x2048
"""
PLOT_SUFFIXES = ('.png', '.svg', '.pdf')
# The share of the available memory that runs may take.
SHARE = 0.9
# The speed of products, relative to those in fp32, under which a dtype is emulated.
SLOW = 0.25


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog='benchmark.py',
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group('cases (every combination is measured)')
    add_choices(what, '--variants', [*VARIANTS, 'all'], ['pcpvt-s', 'svt-s'])
    add_choices(what, '--heads', HEADS, ['none', 'uperhead'])
    add_choices(what, '--modes', MODES, ['inference'])
    add_choices(what, '--dtypes', DTYPES, ['fp32'])
    what.add_argument(
        '--sizes',
        nargs='+',
        type=image_size,
        default=[(512, 512)],
        metavar='HxW',
        help='heights and widths of the images in pixels; one number for a square '
        '(default: 512x512)',
    )
    what.add_argument(
        '--batch-sizes',
        nargs='+',
        type=cli.positive,
        metavar='N',
        help='numbers of images (default: 1, and 2 in training)',
    )
    what.add_argument(
        '--implementations',
        nargs='+',
        choices=IMPLEMENTATIONS,
        metavar='NAME',
        help=f"{', '.join(IMPLEMENTATIONS)} (default: all; timm's backbone only if "
        'timm is installed)',
    )
    what.add_argument('--no-timm', action='store_true', help=argparse.SUPPRESS)
    what.add_argument(
        '--compile',
        action='store_true',
        help='measure each implementation with torch.compile, too',
    )
    how = parser.add_argument_group('measurement')
    how.add_argument(
        '--device',
        choices=['auto', 'cpu', 'cuda'],
        default='auto',
        help='device to run on (default: auto, the GPU if there is one)',
    )
    for name, default, text in (
        ('--runs', 10, 'timed runs of each implementation (default: 10)'),
        ('--warmup', 2, 'runs before the timed ones (default: 2)'),
        ('--threads', None, "CPU threads (default: PyTorch's choice)"),
    ):
        how.add_argument(
            name, type=cli.positive, default=default, metavar='N', help=text
        )
    how.add_argument(
        '--max-memory',
        type=float,
        metavar='GB',
        help='memory that runs may take on the CPU, besides that of the process with '
        'the model, before they are out of memory (default: 90 %% of what is free)',
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
        help='seed of weights, images and labels (default: 0)',
    )
    output = parser.add_argument_group('output')
    output.add_argument(
        '--markdown', action='store_true', help='print the table as Markdown'
    )
    output.add_argument(
        '--json',
        type=Path,
        metavar='FILE.json',
        help='write all results, including the time of every run',
    )
    output.add_argument(
        '--plot',
        type=Path,
        metavar='FILE',
        help=f'plot time and memory; FILE ends in {", ".join(PLOT_SUFFIXES)}',
    )
    output.add_argument(
        '--force', action='store_true', help='replace output files that exist'
    )
    return parser


def add_choices(
    group: argparse._ArgumentGroup,
    name: str,
    choices: Sequence[str] | dict[str, str],
    default: list[str],
) -> None:
    """Add an option that takes one or more of the choices."""
    described = '; '.join(
        f'{choice}: {choices[choice]}' if isinstance(choices, dict) else choice
        for choice in choices
    )
    group.add_argument(
        name,
        nargs='+',
        choices=choices,
        default=default,
        metavar='NAME',
        help=f'{described} (default: {" ".join(default)})',
    )


def image_size(value: str) -> tuple[int, int]:
    """Parse a size: ``512x640`` (height, width), or ``512``."""
    match = re.fullmatch(r'(\d+)(?:x(\d+))?', value)
    if match is None:
        raise argparse.ArgumentTypeError(
            f'{value!r} is not a size; write HEIGHTxWIDTH in pixels, such as 512x512'
        )
    return int(match[1]), int(match[2] or match[1])


def choose_device(args: argparse.Namespace) -> torch.device:
    """Return the device to measure on.

    Raises:
        SettingError: there is no such device, or it does not support an option.
    """
    has_gpu = torch.cuda.is_available()
    if args.device == 'cuda' and not has_gpu:
        raise SettingError('--device cuda: PyTorch finds no GPU')
    if has_gpu and args.device != 'cpu':
        return torch.device('cuda')
    if 'fp16' in args.dtypes:
        raise SettingError('--dtypes fp16 needs a GPU; on the CPU, use bf16')
    compilers = (os.environ.get('CXX'), 'c++', 'g++', 'clang++', 'cl')
    if args.compile and not any(name and shutil.which(name) for name in compilers):
        raise SettingError('--compile: there is no C++ compiler on the PATH')
    return torch.device('cpu')


def choose_implementations(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the implementations to measure, the package first.

    Raises:
        SettingError: timm is requested but not installed.
    """
    chosen = args.implementations
    if chosen is None:
        chosen = [PACKAGE, BUILTIN, *[TIMM] * has_timm()]
    elif TIMM in chosen and not has_timm():
        raise SettingError('--implementations timm: timm is not installed')
    if args.no_timm:
        print(
            'benchmark.py: --no-timm is deprecated; use --implementations '
            f'{PACKAGE} {BUILTIN}',
            file=sys.stderr,
        )
        chosen = [name for name in chosen if name != TIMM]
    return tuple(name for name in IMPLEMENTATIONS if name in chosen)


def prepare(args: argparse.Namespace) -> tuple[list[Case], Settings]:
    """Check all options, and return the cases and settings.

    Raises:
        SettingError: an option has a value that is not allowed.
        OSError: a file cannot be written.
    """
    cases, left_out = expand(
        variants=VARIANTS if 'all' in args.variants else args.variants,
        heads=args.heads,
        modes=args.modes,
        dtypes=args.dtypes,
        sizes=args.sizes,
        batches=args.batch_sizes,
    )
    for reason in left_out:
        print(f'left out: {reason}', file=sys.stderr)
    if args.max_memory is not None and not args.max_memory > 0:
        raise SettingError(f'--max-memory {args.max_memory:g}: give a positive number')
    device = choose_device(args).type
    limit = int(1e9 * (args.max_memory or 0) or SHARE * (available_memory() or 0))
    settings = Settings(
        device=device,
        implementations=choose_implementations(args),
        runs=args.runs,
        warmup=args.warmup,
        threads=args.threads,
        seed=args.seed,
        inference_mode=args.inference_mode,
        compile=args.compile,
        max_memory=limit if limit and device == 'cpu' else None,
    )
    for path, suffixes in ((args.json, ['.json']), (args.plot, PLOT_SUFFIXES)):
        if path is not None:
            check_writable(path, force=args.force, suffixes=suffixes)
    return cases, settings


def measure_peaks(dtypes: Sequence[str], device: torch.device) -> dict[str, float]:
    """Return the speed of products, also in fp32, and report which are emulated."""
    peaks = {d: measure_gemm_peak(d, device) for d in dict.fromkeys(['fp32', *dtypes])}
    for dtype, peak in peaks.items():
        if peak < SLOW * peaks['fp32']:
            print(
                f'{dtype} is {peaks["fp32"] / peak:.0f} times slower than fp32 on this '
                'machine, which probably emulates it: a run can take minutes',
                file=sys.stderr,
            )
    return peaks


def run(
    args: argparse.Namespace, cases: Sequence[Case], settings: Settings, command: str
) -> None:
    """Measure the cases, and write the results so far even if it ends early."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    load = os.getloadavg()[0] if hasattr(os, 'getloadavg') else 0
    if load > 0.5 * usable_cores():
        print(
            f'other programs are running (load {load:.1f} on {usable_cores()} cores): '
            'times will be longer and vary more',
            file=sys.stderr,
        )
    device = torch.device(settings.device)
    context = dict(
        command=command,
        machine=describe_machine(device, settings.threads),
        peaks=measure_peaks(args.dtypes, device),
        settings=settings,
    )
    date = datetime.datetime.now().astimezone().isoformat(timespec='seconds')
    results: list[Result] = []
    console = Console(stderr=True)
    try:
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task('', total=len(cases))

            def show(text: str) -> None:
                progress.update(task, description=text)
                if not console.is_terminal:
                    console.print(text, markup=False, soft_wrap=True)

            for result in measure(cases, settings, progress=show):
                results.append(result)
                progress.advance(task)
                if args.json is not None:
                    content = as_json(results, date=date, **context)
                    force = args.force or len(results) > 1
                    with replacing(args.json, force=force) as temporary:
                        temporary.write_text(json.dumps(content, indent=1) + '\n')
    finally:
        if results:
            print(format_report(results, markdown=args.markdown, **context))
        if results and args.plot is not None:
            title = context['machine'].get('gpu', context['machine']['cpu'])
            kind = args.plot.suffix[1:]
            with replacing(args.plot, force=args.force) as temporary:
                plot(results, temporary, title=title, kind=kind)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit status: 0 if everything was measured, 1 if outputs disagree or
        something cannot be measured, 130 after Ctrl-C.

    Raises:
        SystemExit: with status 2 for invalid arguments.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    arguments = sys.argv[1:] if argv is None else argv
    command = shlex.join(['python', 'tools/analysis_tools/benchmark.py', *arguments])
    with cli.one_sentence_errors(parser):
        cases, settings = prepare(args)
    # This also ends the processes of a measurement.
    earlier = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # mmsegmentation's and mmengine's
            run(args, cases, settings, command)
    except (BenchmarkError, OSError, KeyboardInterrupt) as error:
        message = str(error) or 'interrupted'
        print(f'{parser.prog}: error: {message}', file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    finally:
        signal.signal(signal.SIGTERM, earlier)
    return 0


if __name__ == '__main__':
    sys.exit(run_program(main))
