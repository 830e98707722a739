"""Kill a training again and again, resume it, and compare it with one left alone.

Trains the quickstart's model, made small, twice: once without interruption, and once
ended at moments of eleven kinds (killed in a step, in a validation, while a checkpoint
is written, ...; asked to end by a signal) and resumed with `tools/train.py CONFIG
--resume` after each. Then the checkpoints of both are compared bit by bit. Prints a
table; the exit status is 1 if an end was not survived or anything differs. One takes
about ten seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
PATHS = [str(ROOT), str(ROOT / 'tests/resuming'), str(ROOT / 'tools/demo')]
sys.path += PATHS  # as a command

from kill_hook import MOMENTS, SIGNALS  # noqa: E402
from scene_folder import write_scenes  # noqa: E402

from mmseg_twins.engine.preemption import STATUS  # noqa: E402

KINDS = {
    **MOMENTS,
    'any': 'at any time after the start of the process',
    **SIGNALS,
}
SAVED_EVERY, VALIDATED_EVERY = 2, 4
ITERATIONS_PER_KILL = 6  # that a kill may advance the training by, with some to spare
RESUMED = re.compile(r'resumed epoch: \d+, iter: (\d+)')
# How a process ends that is killed, and one that is asked to end.
ENDS = (
    (-signal.SIGKILL, -signal.SIGXFSZ),
    (STATUS, -signal.SIGUSR1),
)
COMPARED = ('state_dict', 'optimizer', 'param_schedulers')
CONFIG = """\
_base_ = [{base!r}]
custom_imports = dict(imports=['mmseg_twins', 'kill_hook'])
data_root = {data!r}
widths = [8, 16, 24, 32]
model = dict(
    backbone=dict(embed_dims=widths, drop_path_rate=0.2),
    neck=dict(in_channels=widths, out_channels=8),
    decode_head=dict(in_channels=[8] * 4, channels=8, dropout_ratio=0.1),
)
workers = dict(num_workers={workers}, persistent_workers={workers} > 0)
train_dataloader = dict(batch_size=2, dataset=dict(data_root=data_root), **workers)
val_dataloader = dict(dataset=dict(data_root=data_root), **workers)
test_dataloader = val_dataloader
train_cfg = dict(max_iters={iterations}, val_interval={validated_every})
default_hooks = dict(
    checkpoint=dict(interval={saved_every}, max_keep_ckpts=2),
    logger=dict(interval=1),
)
"""


class Trial:
    """A training that is killed, and one that is left alone.

    Attributes:
        tried: kills, by kind.
        survived: those after which the training resumed from the newest whole
            checkpoint.
        repeated: the most iterations that were trained since that one, by kind.
        compared: names of checkpoints of the killed training.
        problems: sentences about what is not as it should be.
    """

    def __init__(self, folder: Path, *, kills: int, workers: int, seed: int) -> None:
        self.folder = folder.absolute()
        self.alone, self.killed = self.folder / 'alone', self.folder / 'killed'
        self.kills = kills
        self.iterations = ITERATIONS_PER_KILL * (kills + 2)
        self.random = random.Random(seed)
        self.starts = 0
        self.tried, self.survived, self.repeated = Counter(), Counter(), Counter()
        self.compared: set[str] = set()
        self.problems: list[str] = []
        self.waiting: list[str] = []  # kinds of kills before the next resumption
        data = self.folder / 'data'
        write_scenes(data, training=10, validation=3, size=(64, 64))
        config = CONFIG.format(
            base=str(ROOT / 'configs/demo/twins_svt_fpn_streets.py'),
            data=str(data),
            workers=workers,
            iterations=self.iterations,
            saved_every=SAVED_EVERY,
            validated_every=VALIDATED_EVERY,
        )
        (self.folder / 'config.py').write_text(config, encoding='utf-8')

    def run(self) -> None:
        """Trains, kills, resumes and compares."""
        start_up = self.train_alone()
        for number in range(self.kills):
            self.kill(list(KINDS)[number % len(KINDS)], start_up)
        before = self.position
        process = self.start(self.killed, '--resume')
        process.wait()
        self.check(process, before)
        if scores(self.killed) != scores(self.alone):
            self.problems.append('validations are missing or differ')
        if leftover := [file.name for file in self.killed.glob('.*.tmp')]:
            self.problems.append(f'temporary files are left: {leftover}')

    def start(self, work_dir: Path, *arguments: str) -> subprocess.Popen:
        """Starts a training; see :attr:`log`."""
        self.starts += 1
        paths = [*PATHS, *filter(None, [os.environ.get('PYTHONPATH')])]
        return subprocess.Popen(
            [sys.executable, str(ROOT / 'tools/train.py'), 'config.py']
            + ['--work-dir', str(work_dir), *arguments],
            cwd=self.folder,
            env={
                **os.environ,
                'OMP_NUM_THREADS': '1',
                'CUDA_VISIBLE_DEVICES': '',
                'PYTHONPATH': os.pathsep.join(paths),
            },
            stdout=self.log.open('wb'),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def log(self) -> Path:
        """What the last start has printed."""
        return self.folder / f'start_{self.starts:03}.log'

    def train_alone(self) -> float:
        """Trains without a kill; returns the seconds up to the first checkpoint."""
        begin = time.monotonic()
        keep_all = [
            f'default_hooks.checkpoint.{setting}'
            for setting in ('max_keep_ckpts=-1', 'interval=1')
        ]
        process = self.start(self.alone, '--cfg-options', *keep_all)
        while process.poll() is None and not any(self.alone.glob('iter_*.pth')):
            time.sleep(0.05)
        seconds = time.monotonic() - begin
        if process.wait() != 0:
            raise RuntimeError(f'{self.log}: the training failed without a kill')
        return seconds

    def kill(self, kind: str, start_up: float) -> None:
        """Resumes the training and kills it, unless it ends before."""
        before, rows = self.position, len(logged(self.killed))
        arguments = ['--resume']
        if kind != 'any':
            at = before + self.random.choice((1, 2, 3, 4))
            if kind == 'removing':
                at = max(at, 3 * SAVED_EVERY)
            settings = dict(
                type='mmseg_twins.Kill',
                moment=kind,
                at=min(at, self.iterations),
                share=round(self.random.uniform(0.05, 0.95), 3),
            )
            arguments.append('--cfg-options')
            arguments += [f'default_hooks.kill.{k}={v}' for k, v in settings.items()]
        process = self.start(self.killed, *arguments)
        if kind == 'any':
            with suppress(subprocess.TimeoutExpired):
                process.wait(start_up * self.random.uniform(0.4, 1.3))
        else:
            process.wait()
        with suppress(ProcessLookupError):  # workers too
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self.check(process, before)
        if process.returncode in ENDS[kind in SIGNALS]:
            self.tried[kind] += 1
            self.waiting.append(kind)
            steps = [row['step'] for row in logged(self.killed)[rows:] if 'loss' in row]
            again = max(steps, default=self.position) - self.position
            self.repeated[kind] = max(self.repeated[kind], again)

    def check(self, process: subprocess.Popen, before: int) -> None:
        """Checks a training that has ended, and the checkpoints that it has left.

        Args:
            process: of the training.
            before: the position that it had to resume from.
        """
        log = self.log.read_text(encoding='utf-8', errors='replace')
        resumed = RESUMED.search(log)
        if resumed or 'nothing to resume' in log:
            if (int(resumed[1]) if resumed else 0) == before:
                self.survived.update(self.waiting)
            self.waiting.clear()
        if process.returncode > 0 and process.returncode != STATUS:
            self.problems.append(f'{self.log.name}: status {process.returncode}')
        for path in self.killed.glob('iter_*.pth'):
            self.compared.add(path.name)
            found, expected = load(path), load(self.alone / path.name)
            if found is None:
                self.problems.append(f'{path.name} cannot be read')
            elif not all(equal(found[key], expected[key]) for key in COMPARED):
                self.problems.append(f'{path.name} differs')

    @property
    def position(self) -> int:
        """The iteration of the newest whole checkpoint, by trying to load them all."""
        paths = [path for path in self.killed.glob('iter_*.pth') if load(path)]
        return max((int(path.stem.removeprefix('iter_')) for path in paths), default=0)

    @property
    def is_good(self) -> bool:
        """Whether all kills were survived, and nothing is lost or different."""
        return self.tried == self.survived and not self.problems

    def table(self) -> str:
        """The results as a table of Markdown, and the comparison below it."""
        rows = [
            '| killed, or ended by | times '
            '| resumed from the newest whole checkpoint '
            '| iterations trained again, at most |',
            '| --- | --- | --- | --- |',
        ]
        for kind, name in KINDS.items():
            numbers = (self.tried[kind], self.survived[kind], self.repeated[kind])
            rows.append(f'| {name} | {" | ".join(map(str, numbers))} |')
        rows.append(f'| all | {self.tried.total()} | {self.survived.total()} | |')
        problems = '; '.join(dict.fromkeys(self.problems)) or 'none'
        compared = f'checkpoints compared: {len(self.compared)}; problems: {problems}'
        return '\n'.join([*rows, '', compared])


def load(path: Path) -> dict | None:
    """Reads a checkpoint; None if that fails."""
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except (EOFError, OSError, RuntimeError, ValueError):
        return None


def equal(first, second) -> bool:
    """Whether two nested structures have the same keys, tensors and values."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, Mapping):
        return first.keys() == second.keys() and all(
            equal(value, second[key]) for key, value in first.items()
        )
    if isinstance(first, Iterable) and not isinstance(first, str):
        return len(first) == len(second) and all(map(equal, first, second))
    return first == second


def logged(work_dir: Path) -> list[dict]:
    """What the processes of a training logged, in the order of their starts."""
    rows = []
    for file in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in file.read_text(encoding='utf-8').splitlines():
            with suppress(json.JSONDecodeError):  # a line that a kill cut off
                rows.append(json.loads(line))
    return rows


def scores(work_dir: Path) -> dict[int, float]:
    """The mean IoU of each validation, by iteration."""
    return {row['step']: row['mIoU'] for row in logged(work_dir) if 'mIoU' in row}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options = dict(default=Path('work_dirs/kill_and_resume'), type=Path)
    parser.add_argument('--work-dir', help='new or empty folder', **options)
    for name, default, text in (
        ('kills', 44, 'number of kills'),
        ('workers', 0, 'processes that load data'),
        ('seed', 0, 'of the moments'),
    ):
        text = f'{text} (default: {default})'
        parser.add_argument(f'--{name}', default=default, type=int, help=text)
    args = parser.parse_args(argv)
    if args.work_dir.exists() and any(args.work_dir.iterdir()):
        parser.error(f'--work-dir: {str(args.work_dir)!r} is not empty')
    args.work_dir.mkdir(parents=True, exist_ok=True)
    trial = Trial(args.work_dir, kills=args.kills, workers=args.workers, seed=args.seed)
    trial.run()
    print(trial.table())
    return 0 if trial.is_good else 1


if __name__ == '__main__':
    sys.exit(main())
