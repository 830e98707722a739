"""What becomes of broken and hostile checkpoints.

    PYTHONPATH=tests python -m checkpoints.fuzz --files 10000 --seed 1

makes that many files (:mod:`checkpoints.mutations`) and gives them, in turns, to the
converter, to mmengine's loader as ``--resume`` and ``tools/test.py`` use it, and to the
reader of ``tools/predict.py``, each in a process of its own with limited time and
memory. It prints a table and exits with status 1 if anything but a refusal in a
sentence or a right conversion happens. A file's number says what it is: ``--first
4711 --files 1`` tries one again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.runner import load_checkpoint

from builders import shapes_of
from checkpoints.mutations import EXECUTED, KINDS, mutate
from mmseg_twins.checkpoints.reading import read_source
from mmseg_twins.cli import convert as cli
from mmseg_twins.errors import CheckpointError

TIME = 20  # seconds of computing for one file, as writing waits for the disk
MEMORY = 3 << 30  # bytes of addresses beyond those that a process starts with
SENTENCE = 700  # characters; a message is no dump
SUSPICIOUS = {
    *('os.system', 'os.exec', 'os.posix_spawn', 'os.fork', 'subprocess.Popen'),
    *('socket.connect', 'socket.bind', 'webbrowser.open', 'ctypes.dlopen'),
}
CALLED: list[str] = []  # suspicious events of this process

# What becomes of a file: 'refused' or 'read' with the sentence, or 'other' with what
# has happened.
Outcome = tuple[str, str]


class Trial(NamedTuple):
    """An outcome, seconds of computing, and bytes by which the process grew."""

    outcome: str
    text: str
    seconds: float
    growth: int


def convert(path: Path) -> Outcome:
    """Gives a file to the command ``twins2mmseg``, over a file that exists."""
    store = path.parent / 'out' / 'store.pth'
    store.parent.mkdir()
    store.write_text('precious')
    said = io.StringIO()
    with redirect_stderr(said), redirect_stdout(io.StringIO()):
        status = cli.main([str(path), str(store), '--force'])
    if os.listdir(store.parent) != [store.name]:
        return 'other', f'left {os.listdir(store.parent)}'
    if status:
        if store.read_text() != 'precious':
            return 'other', 'the store was damaged'
        return 'refused', said.getvalue().removesuffix('\n')
    written = torch.load(store, weights_only=True)['state_dict']
    for key, tensor in read_source(path).state.items():
        same = written.get(key.removeprefix('module.'))
        if same is not None and not torch.equal(same, tensor):
            return 'other', f'{key} was changed'
    prefix = 'backbone.' * ('backbone.patch_embeds.0.projection.weight' in written)
    is_svt = f'{prefix}layers.0.0.attn.qkv.weight' in written
    wanted = shapes_of('mmseg', 'svt-s' if is_svt else 'pcpvt-s')
    wrong = [
        name
        for name, shape in wanted.items()
        if not name.startswith('norm_list')  # classifiers have none
        and (prefix + name not in written or written[prefix + name].shape != shape)
    ]
    return ('other', f'{wrong[:3]} are wrong') if wrong else ('read', '')


def resume(path: Path) -> Outcome:
    """Gives a file to mmengine's loader and a small model."""
    with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        load_checkpoint(torch.nn.Linear(2, 2), str(path), 'cpu', logger='silent')
    return 'read', ''


def predict(path: Path) -> Outcome:
    """Gives a file to what ``tools/predict.py`` reads checkpoints with."""
    read_source(path)
    return 'read', ''


USES = {'convert': convert, 'resume': resume, 'predict': predict}


def judge(use: Callable[[Path], Outcome], path: Path) -> Outcome:
    """Uses a file and looks at how that ends, in this process."""
    try:
        kind, text = use(path)
    except (CheckpointError, FileNotFoundError) as error:
        kind, text = 'refused', str(error)
    except BaseException:
        return 'other', traceback.format_exc()[-1500:]
    if CALLED or (path.parent / EXECUTED).exists() or Path(EXECUTED).exists():
        return 'other', f'code was executed {CALLED}'
    if kind == 'refused' and ('\n' in text or not 10 < len(text) < SENTENCE):
        return 'other', f'no sentence: {text[:300]!r}'
    return kind, text


def isolated(use: Callable[[Path], Outcome], path: Path) -> Trial:
    """Uses a file in a process of its own, with limits."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reading)
            limit_process()
            os.chdir(path.parent)
            before = peak_memory()
            outcome = judge(use, path)
            measured = time.process_time(), peak_memory() - before
            message = json.dumps([*outcome, *measured])
        except BaseException as error:
            message = json.dumps(['other', repr(error), 0, 0])
        os.write(writing, message.encode()[:60_000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, 'rb') as pipe:
        message = pipe.read()
    _, status = os.waitpid(child, 0)
    if not message:
        return Trial('other', f'the process ended with status {status}', TIME, 0)
    return Trial(*json.loads(message))


def peak_memory() -> int:
    """Bytes; a process that was forked begins with what its parent has."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def limit_process() -> None:
    """Limits time and memory of this process, and refuses to start others."""
    size = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.setitimer(signal.ITIMER_PROF, TIME)

    def watch(event: str, arguments: tuple) -> None:
        if event in SUSPICIOUS:
            CALLED.append(f'{event}{arguments}'[:300])  # whoever catches the error
            raise RuntimeError(f'{event} was called')

    sys.addaudithook(watch)


def rows_of(trials: dict[str, list[Trial]]) -> list[str]:
    """The table, a row for each kind and one for all."""
    every = [trial for kind in trials.values() for trial in kind]
    rows = [
        '| kind of file | files | read | refused in a sentence | anything else | '
        'slowest, s | largest growth, MB |',
        '| --- |' + ' ---: |' * 6,
    ]
    for kind, some in [*trials.items(), ('all', every)]:
        count = Counter(trial.outcome for trial in some)
        rows.append(
            f'| {kind} | {len(some)} | {count["read"]} | {count["refused"]} | '
            f'{count["other"]} | {max(trial.seconds for trial in some):.2f} | '
            f'{max(trial.growth for trial in some) / 1e6:.0f} |'
        )
    return rows


def tried(kind: str, number: int, seed: int, use: str) -> Trial:
    """Makes a file and tries it."""
    suffix, content = mutate(kind, number, seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f'source{suffix}')
        path.write_bytes(content)
        trial = isolated(USES[use], path)
    if (kind, trial.outcome) == ('untouched', 'refused') and use != 'resume':
        return trial._replace(outcome='other')  # it is sound
    return trial


def main(argv: list[str] | None = None) -> int:
    """Tries files and prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--files', type=int, default=1000, help='number of files')
    parser.add_argument('--first', type=int, default=0, help='number of the first')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--kinds', nargs='+', choices=KINDS, default=list(KINDS))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    import mmseg.models  # noqa: F401, once and not in each process

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    trials: dict[str, list[Trial]] = defaultdict(list)
    with contextlib.suppress(KeyboardInterrupt):  # which ends it with what there is
        for number in range(args.first, args.first + args.files):
            turn, place = divmod(number, len(args.kinds))
            kind, name = args.kinds[place], list(USES)[turn % len(USES)]
            trial = tried(kind, number, args.seed, name)
            if trial.outcome == 'other':
                print(f'{kind} {number}, {name}: {trial.text}', file=sys.stderr)
            trials[kind].append(trial)
    print('\n'.join(rows_of(trials)))
    every = [trial for kind in trials.values() for trial in kind]
    return int(any(trial.outcome == 'other' for trial in every))


if __name__ == '__main__':
    sys.exit(main())
