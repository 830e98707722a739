"""Test and measure the package on a GPU, and write one report in Markdown.

Three parts share the time: the tests marked gpu, the comparison of operations with
plain implementations, and the benchmark against the built-in, most informative cases
first. A part whose time is up reports its results so far. Needs no internet and, with
all other packages in --wheels, nothing installed but PyTorch and pytest.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / 'tools/analysis_tools'
PARTS = {'tests': 0.4, 'ops': 0.15, 'benchmark': 1.0}  # share of the remaining time
GRACE = 20  # seconds for a part to end when its time is up
OUTCOMES = ('passed', 'failed', 'error', 'skipped', 'xfail', 'xpass')
# The benchmarks, most informative ones first: arguments and number of images.
BENCHMARKS = (
    ('--heads uperhead --modes train inference', 4),
    ('--heads none --modes train inference', 4),
    ('--variants svt-s --heads uperhead none --modes train inference --compile', 4),
    ('--heads uperhead none --modes train inference', 16),
    ('--heads none uperhead --modes inference', 1),
)


class Report:
    """A Markdown file that is complete after each part, and a log beside it."""

    def __init__(self, path: Path) -> None:
        self.path, self.log = path, path.with_suffix('.log')
        self.text = '# mmseg_twins on a GPU\n'
        self.log.write_text('')

    def add(self, title: str, text: str) -> None:
        """Add a section."""
        self.text += f'\n## {title}\n\n{text.strip()}\n'
        temporary = self.path.with_name(f'.{self.path.name}.part')
        temporary.write_text(self.text, encoding='utf-8')
        temporary.replace(self.path)

    def run(self, command: Sequence[str], seconds: float, env: dict) -> tuple[str, str]:
        """Run a command until its time is up; return its output and how it ended.

        Its stderr goes to the log only.
        """
        print(f'[{seconds:.0f} s] {shlex.join(command)}', file=sys.stderr, flush=True)
        started = time.monotonic()
        with self.log.open('ab') as log, tempfile.TemporaryFile() as out:
            log.write(f'\n$ {shlex.join(command)}\n'.encode())
            log.flush()
            process = subprocess.Popen(
                command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=out,
                stderr=log, start_new_session=True, preexec_fn=allow_interrupts,
            )  # fmt: skip
            try:
                process.wait(seconds)
                end = f'ended with status {process.returncode}'
            except subprocess.TimeoutExpired:
                end = 'was stopped when its time was up'
                process.send_signal(signal.SIGINT)  # it prints its results so far
                with suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE)
            finally:  # end its child processes, too
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            out.seek(0)
            printed = out.read()
            log.write(printed)
        end = f'It {end} after {time.monotonic() - started:.0f} s.'
        return printed.decode(errors='replace'), end


def allow_interrupts() -> None:
    """Make Ctrl-C end a process even if this one was started in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def install(wheels: Path, folder: str, env: dict) -> None:
    """Install wheels to a folder that comes first in Python's path.

    Raises:
        SystemExit: there are no wheels, or pip fails.
    """
    files = sorted(map(str, wheels.glob('*.whl')))
    if not files:
        sys.exit(f'gpu_report.py: error: --wheels {wheels}: the folder has no *.whl')
    pip = [sys.executable, '-m', 'pip', 'install', '-q', '--no-index', '--no-deps']
    done = subprocess.run(
        [*pip, '--find-links', str(wheels), '--target', folder, *files],
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        sys.exit(f'gpu_report.py: error: pip could not install {wheels}')
    env['PYTHONPATH'] = os.pathsep.join([folder, env['PYTHONPATH']])


def test_table(printed: str) -> str:
    """Return a table of pytest's outcomes by file, and its lines about failures."""
    counts: dict[str, Counter] = {}
    words = '|'.join(OUTCOMES).upper()
    for line in printed.splitlines():
        file = re.search(r'tests/gpu/(\w+)\.py::', line)
        outcome = re.search(rf'\b({words})\b', line)
        if file and outcome and not line.startswith(('FAILED', 'ERROR')):  # the summary
            counts.setdefault(file[1], Counter())[outcome[1].lower()] += 1
    rows = [f'| tests/gpu | {" | ".join(OUTCOMES)} |', '| --- |' + ' ---: |' * 6]
    for name, count in sorted(counts.items()):
        cells = ' | '.join(str(count[outcome]) for outcome in OUTCOMES)
        rows.append(f'| {name} | {cells} |')
    wrong = [
        f'- `{line[:300]}`'
        for line in printed.splitlines()
        if line.startswith(('FAILED', 'ERROR '))
    ]
    return '\n'.join([*rows, '', *wrong])


def tests(report: Report, seconds: float, env: dict, args: argparse.Namespace) -> None:
    """Run the tests marked gpu."""
    command = [sys.executable, '-m', 'pytest', '-m', 'gpu', 'tests/gpu', '-v', '-rfE']
    command += ['--tb=short', '-p', 'no:cacheprovider', '--color=no']
    command += ['-n', str(args.processes)] if args.processes > 1 else []
    command += ['--gpu-tests-on-cpu'] if args.rehearse else []
    command += ['-k', args.select] if args.select else []
    printed, end = report.run(command, seconds, env)
    report.add('Tests', f'{test_table(printed)}\n\n{end}')


def ops(report: Report, seconds: float, env: dict, args: argparse.Namespace) -> None:
    """Compare operations with plain implementations."""
    command = [sys.executable, str(TOOLS / 'compare_ops.py')]
    if args.rehearse:
        command += ['--device', 'cpu', '--batch', '1', '--shrink', '16']
    printed, end = report.run(command, seconds, env)
    report.add('Operations', f'{printed}\n\n{end}')


def benchmark(
    report: Report, seconds: float, env: dict, args: argparse.Namespace
) -> None:
    """Benchmark backbones and UPerNets against the built-in while there is time."""
    end = time.monotonic() + seconds
    for arguments, batch in BENCHMARKS:
        left = end - time.monotonic()
        if left < 2 * GRACE:
            report.add(f'Benchmark: `{arguments}`, batch {batch}', 'No time was left.')
            continue
        options = ['--markdown', '--dtypes', 'bf16', 'fp32', '--device']
        options += ['cpu'] if args.rehearse else ['cuda', '--batch-sizes', str(batch)]
        if args.rehearse:
            options += ['--runs', '1', '--warmup', '1', '--sizes', '64x96']
        command = [sys.executable, str(TOOLS / 'benchmark.py'), *arguments.split()]
        printed, how = report.run([*command, *options], left - GRACE, env)
        report.add(f'Benchmark: `{arguments}`, batch {batch}', f'{printed}\n\n{how}')


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(prog='gpu_report.py', description=__doc__)
    parser.add_argument(
        'out', type=Path, metavar='REPORT.md', help='the report; REPORT.log is the log'
    )
    parser.add_argument(
        '--wheels', type=Path, metavar='DIR', help='folder of wheels to use temporarily'
    )
    parser.add_argument(
        '--minutes',
        type=float,
        default=9.0,
        metavar='N',
        help='time in all (default: 9)',
    )
    parser.add_argument(
        '--parts', nargs='+', choices=PARTS, default=list(PARTS), help='default: all'
    )
    parser.add_argument(
        '--processes', type=int, default=4, metavar='N', help='for tests (default: 4)'
    )
    parser.add_argument(
        '--select', metavar='WORDS', help="tests to run, as for pytest's -k"
    )
    parser.add_argument(
        '--rehearse', action='store_true', help='run on the CPU, with small models'
    )
    parser.add_argument('--force', action='store_true', help='replace REPORT.md')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status: 0 once the report is written."""
    parser = make_parser()
    args = parser.parse_args(argv)
    out = args.out.absolute()
    if out.suffix != '.md':
        parser.error(f'{args.out} does not end in .md')
    for path in (out, out.with_suffix('.log')):
        if path.exists() and not args.force:
            parser.error(f'{path} exists already; --force replaces it')
    if not args.minutes > 0:
        parser.error(f'--minutes {args.minutes:g}: give a positive number')
    end = time.monotonic() + 60 * args.minutes
    env = {**os.environ, 'PYTHONUNBUFFERED': '1', 'COLUMNS': '200'}
    earlier = env.get('PYTHONPATH')
    env['PYTHONPATH'] = os.pathsep.join(filter(None, (str(ROOT), earlier)))
    with tempfile.TemporaryDirectory(prefix='mmseg_twins_wheels_') as folder:
        if args.wheels is not None:
            install(args.wheels, folder, env)
        out.parent.mkdir(parents=True, exist_ok=True)
        report = Report(out)
        parts = {'tests': tests, 'ops': ops, 'benchmark': benchmark}
        for name in args.parts:
            left = end - time.monotonic() - GRACE
            share = 1.0 if name == args.parts[-1] else PARTS[name]
            parts[name](report, max(share * left, 1.0), env, args)
    print(f'{out} is written', file=sys.stderr)
    return 0


if __name__ == '__main__':
    sys.exit(main())
