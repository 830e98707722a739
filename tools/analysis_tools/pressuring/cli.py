"""The command ``pressure.py``: arguments in, a table, JSON and a picture out."""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from benchmarking.arguments import (
    add_output_arguments,
    check_output,
    described,
    image_size,
    positive,
)
from benchmarking.cases import min_image_side
from benchmarking.errors import BenchmarkError
from benchmarking.machine import describe_machine
from benchmarking.memory import CLEAR, STATUS
from benchmarking.progress import Progress, interrupt

from mmseg_twins.checkpoints.models import VARIANTS
from mmseg_twins.checkpoints.writing import replacing
from pressuring import inference, report, training
from pressuring.alone import FAILED, OK, available_memory

DESCRIPTION = """\
Measure how much memory the models take: at any image size, or in training.

Images of growing size are predicted on the CPU, each in a process of its own, whole
and in mmsegmentation's sliding windows. An image that does not fit is said to, and the
next one has its turn. With --steps, narrow models are trained instead, and the exit
status is 1 if their memory grows. The table goes to stdout, progress to stderr.
docs/pressure.md says how to read it. Needs Linux, which records peaks.
"""
EPILOG = """\
examples:
  python tools/analysis_tools/pressure.py
  python tools/analysis_tools/pressure.py --sizes 512 1024x2048 --modes whole --max-memory 4
  python tools/analysis_tools/pressure.py --variant pcpvt-l --heads fpn --json sizes.json \\
      --plot sizes.png
  python tools/analysis_tools/pressure.py --steps 200
"""
# Windows, as recipes have them for images of other sizes than they train on.
CROP, STRIDE = 512, 341
RUNS = 3
# The share of free memory that a measurement may take, unless told otherwise.
SHARE = 0.9


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog='pressure.py',
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group('what is measured')
    what.add_argument(
        '--variant',
        choices=VARIANTS,
        default='svt-s',
        metavar='NAME',
        help=f'backbone: {", ".join(VARIANTS)} (default: svt-s)',
    )
    what.add_argument(
        '--heads',
        nargs='+',
        choices=inference.HEADS,
        metavar='NAME',
        help=f'{described(inference.HEADS)} (default: uperhead, and both with --steps)',
    )
    what.add_argument(
        '--sizes',
        nargs='+',
        type=image_size,
        metavar='HxW',
        help='heights and widths of the images in pixels; one number for a square '
        f'(default: {" ".join(f"{h}x{w}" for h, w in inference.SIZES)})',
    )
    what.add_argument(
        '--modes',
        nargs='+',
        choices=inference.MODES,
        metavar='NAME',
        help=f'{described(inference.MODES)} (default: both)',
    )
    what.add_argument(
        '--crop',
        type=positive,
        metavar='PX',
        help=f'side of a sliding window (default: {CROP})',
    )
    what.add_argument(
        '--stride',
        type=positive,
        metavar='PX',
        help=f'from one window to the next (default: {STRIDE})',
    )
    what.add_argument(
        '--runs',
        type=positive,
        metavar='N',
        help='how often an image is predicted; one prediction that takes '
        f'{inference.ENOUGH:.0f} s is the last (default: {RUNS})',
    )
    what.add_argument(
        '--steps',
        type=positive,
        metavar='N',
        help='train narrow models for N steps instead, at least '
        f'{training.MIN_STEPS}, and look whether their memory grows',
    )
    how = parser.add_argument_group('how')
    how.add_argument(
        '--max-memory',
        type=amount,
        metavar='GB',
        help='what takes more, above what the process with the model has, is ended '
        f'and reported (default: {SHARE:.0%} of what is free)'.replace('%', '%%'),
    )
    how.add_argument(
        '--max-growth',
        type=amount,
        metavar='MB',
        help='with --steps: the growth after the first quarter of the steps that is '
        f'let pass (default: {training.MAX_GROWTH / 1e6:.0f})',
    )
    how.add_argument(
        '--threads',
        type=positive,
        metavar='N',
        help="CPU threads (default: PyTorch's choice, and 1 with --steps)",
    )
    how.add_argument(
        '--seed',
        type=int,
        default=0,
        metavar='N',
        help='of weights, images and labels (default: 0)',
    )
    output = add_output_arguments(parser)
    output.add_argument(
        '--resume',
        action='store_true',
        help='measure only what the file of --json does not have yet, as after an '
        'interruption; others stay in that file, and out of the table',
    )
    return parser


def amount(value: str) -> float:
    """An argument that is a number above 0."""
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < float('inf'):
        raise argparse.ArgumentTypeError(f'{value!r} is no number above 0')
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: arguments; None for those of the process.

    Returns:
        The exit status: 0 if everything was measured or did not fit; 1 if something
        failed otherwise, or memory grows. After an interruption it is 128 and the
        number of the signal, as in a shell.

    Raises:
        SystemExit: with status 2 for arguments that are none.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    progress = Progress()
    earlier = signal.signal(signal.SIGTERM, interrupt)
    try:
        check(args, parser)
        good = run(args, progress, sys.argv[1:] if argv is None else argv)
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
    return 0 if good else 1


def check(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Looks at everything that can be wrong before something is measured."""
    of_sizes = ('sizes', 'modes', 'crop', 'stride', 'runs')
    if args.steps is not None:
        for name in of_sizes:
            if getattr(args, name) is not None:
                parser.error(f'--{name} is about predictions, and --steps trains')
        if args.steps < training.MIN_STEPS:
            parser.error(
                f'--steps {args.steps}: give at least {training.MIN_STEPS}, fewer show '
                'no slope'
            )
    elif args.max_growth is not None:
        parser.error('--max-growth is about training; give --steps, too')
    smallest = min_image_side(args.variant)
    for height, width in args.sizes or ():
        if min(height, width) < smallest:
            parser.error(
                f'--sizes {height}x{width}: both sides need at least {smallest} px '
                f'for {args.variant}'
            )
    crop, stride = args.crop or CROP, args.stride or STRIDE
    if crop < smallest:
        parser.error(f'--crop {crop}: give at least {smallest} px for {args.variant}')
    if stride > crop:
        parser.error(f'--stride {stride}: give no more than --crop {crop}')
    if args.steps is None and not jobs_of(args):
        parser.error(
            '--modes slide: every image fits into one window; give larger --sizes, or '
            'add whole'
        )
    if not (STATUS.exists() and CLEAR.exists()):
        parser.error(f'memory is measured through {CLEAR}, which this system lacks')
    if args.resume and args.json is None:
        parser.error('--resume: give the file of the earlier run by --json')
    if args.resume and args.steps is not None:
        parser.error('--resume is about predictions, and --steps trains')
    if args.max_memory is None and available_memory() is None:
        parser.error('this system does not say how much is free; give --max-memory')
    try:
        for path in (args.json, args.plot):
            if path is not None:
                resumed = args.resume and path == args.json
                check_output(path, force=args.force or resumed)
        if args.resume:
            read_earlier(args.json)
    except BenchmarkError as error:
        parser.exit(2, f'{parser.prog}: error: {error}\n')


def read_earlier(path: Path) -> list[dict]:
    """What was measured, from a file that an earlier run has written.

    Raises:
        BenchmarkError: it has none.
    """
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        if content['kind'] == 'sizes':
            return [result for result in content['results'] if result['status'] == OK]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise BenchmarkError(f'--resume: {path} holds no predictions that were measured')


class Outputs:
    """What is made of the results.

    Args:
        args: parsed arguments.
        context: what JSON holds besides the results.
        tabulate: makes the report of them.
        draw: makes the picture of them.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        context: Mapping,
        *,
        tabulate: Callable[[Sequence[Mapping]], str],
        draw: Callable[[Sequence[Mapping], Path], None],
    ) -> None:
        self.args = args
        self.context = context
        self.tabulate = tabulate
        self.draw = draw
        self.earlier = read_earlier(args.json) if args.resume else []
        self.results: list[dict] = []
        self.written = False

    def add(self, result: dict) -> None:
        """Takes a result; the JSON file has it from then on."""
        self.results.append(result)
        if self.args.json is None:
            return
        # What was measured earlier stays, whatever becomes of this run.
        others = [result for result in self.earlier if result not in self.results]
        content = {**self.context, 'results': [*self.results, *others]}
        force = self.args.force or self.args.resume or self.written
        with replacing(self.args.json, force=force) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + '\n')
        self.written = True

    def finish(self) -> None:
        """Prints the table and draws the picture, of what there is."""
        if not self.results:
            return
        print(self.tabulate(self.results))
        if self.args.plot is not None:
            with replacing(self.args.plot, force=self.args.force) as temporary:
                self.draw(self.results, temporary)


def run(args: argparse.Namespace, progress: Progress, argv: Sequence[str]) -> bool:
    """Measures, and writes what was measured even if it ends early.

    Returns:
        Whether nothing failed, and no memory grows.
    """
    # Narrow models gain nothing from more than one.
    threads = args.threads or (None if args.steps is None else 1)
    machine = describe_machine(torch.device('cpu'), threads)
    if args.max_memory is None:
        limit = int(SHARE * available_memory())
    else:
        limit = int(1e9 * args.max_memory)
    max_growth = int(1e6 * (args.max_growth or training.MAX_GROWTH / 1e6))
    command = shlex.join(['python', 'tools/analysis_tools/pressure.py', *argv])
    kind = 'sizes' if args.steps is None else 'training'

    def tabulate(results: Sequence[Mapping]) -> str:
        if kind == 'sizes':
            columns, rows = report.COLUMNS, report.make_rows(results)
            legend = report.LEGEND.format(
                enough=inference.ENOUGH,
                runs=args.runs or RUNS,
                crop=args.crop or CROP,
                stride=args.stride or STRIDE,
            )
        else:
            columns = report.TRAINING_COLUMNS
            rows = report.make_training_rows(results, max_growth)
            legend = report.TRAINING_LEGEND
        return report.format_report(
            report.machine_facts(machine, limit),
            report.format_table(columns, rows, markdown=args.markdown),
            legend,
            command=command,
            markdown=args.markdown,
        )

    def draw(results: Sequence[Mapping], path: Path) -> None:
        from pressuring import plot

        how = dict(title=machine['cpu'], kind=args.plot.suffix[1:].lower())
        if kind == 'sizes':
            plot.plot_sizes(results, path, **how)
        else:
            plot.plot_training(results, path, max_growth=max_growth, **how)

    context = {
        'command': command,
        'date': datetime.datetime.now().astimezone().isoformat(timespec='seconds'),
        'machine': machine,
        'kind': kind,
        'max_memory_bytes': limit,
        **({} if kind == 'sizes' else {'max_growth_bytes': max_growth}),
    }
    outputs = Outputs(args, context, tabulate=tabulate, draw=draw)
    measure = measure_sizes if kind == 'sizes' else measure_training
    try:
        with warnings.catch_warnings():
            # Those of mmsegmentation and mmengine are about their own affairs.
            warnings.simplefilter('ignore')
            for result in measure(args, limit, progress, outputs.earlier):
                outputs.add(result)
    finally:
        progress.close()
        outputs.finish()
    if kind == 'sizes':
        return all(result['status'] != FAILED for result in outputs.results)
    return all(report.is_level(result, max_growth) for result in outputs.results)


def jobs_of(args: argparse.Namespace) -> list[inference.Job]:
    """The predictions that are asked for."""
    return inference.make_jobs(
        variant=args.variant,
        heads=args.heads or ['uperhead'],
        modes=args.modes or list(inference.MODES),
        sizes=args.sizes or inference.SIZES,
        crop=args.crop or CROP,
        stride=args.stride or STRIDE,
        runs=args.runs or RUNS,
        threads=args.threads,
        seed=args.seed,
    )


def measure_sizes(
    args: argparse.Namespace,
    limit: int,
    progress: Progress,
    earlier: Sequence[dict],
) -> Iterator[dict]:
    """Predicts every image that was not earlier; yields plain values for each."""
    jobs = jobs_of(args)
    for number, job in enumerate(jobs, start=1):
        found = next((r for r in earlier if inference.is_of(r, job)), None)
        if found is not None:
            yield found
            continue
        title = f'[{number}/{len(jobs)}] {job.title}'
        progress(title)
        ending = inference.measure(job, max_memory=limit)
        if ending.status != OK:
            progress(f'{title}: {ending.status}, {ending.message}')
        yield inference.as_dict(job, ending)


def measure_training(
    args: argparse.Namespace,
    limit: int,
    progress: Progress,
    earlier: Sequence[dict],
) -> Iterator[dict]:
    """Trains every model; yields plain values for each."""
    for head in dict.fromkeys(args.heads or inference.HEADS):
        job = training.TrainingJob(
            args.variant,
            head,
            args.steps,
            threads=args.threads or 1,
            seed=args.seed,
        )
        progress(job.title)
        ending = training.measure(job, max_memory=limit, progress=progress)
        yield training.as_dict(job, ending)
