"""Kills a training again and again, and compares it with one that was let alone."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from scene_folder import write_scenes

from faults.kill import MOMENTS

ANY = 'any'
ANY_TIME = 'at any time after the start of the process'
SAVED_EVERY, VALIDATED_EVERY = 2, 4
# Iterations that a kill may bring the training on by, with some to spare.
ITERATIONS_PER_KILL = 6
RESUMED = re.compile(r'resumed epoch: \d+, iter: (\d+)')
COMPARED = ('state_dict', 'optimizer', 'param_schedulers')
ENDED_BY = (-signal.SIGKILL, -signal.SIGXFSZ)

CONFIG = """\
_base_ = [{base!r}]
custom_imports = dict(imports=['mmseg_twins', 'faults'])
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


@dataclass
class Outcome:
    """What became of the kills of one kind.

    Args:
        tried: Kills.
        survived: Those after which the training went on from the newest whole
            checkpoint.
        repeated: The most iterations that had been trained since that one.
    """

    tried: int = 0
    survived: int = 0
    repeated: int = 0


@dataclass
class Result:
    """What came of a trial.

    Args:
        outcomes: By moment.
        compared: Checkpoints of the killed training that were compared.
        different: Those that are not equal, bit for bit, to the other training's.
        lost: Sentences about anything else that is not as it should be.
    """

    outcomes: dict[str, Outcome]
    compared: set[str] = field(default_factory=set)
    different: set[str] = field(default_factory=set)
    lost: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether all kills were survived, and nothing is lost or different."""
        survived = all(o.tried == o.survived for o in self.outcomes.values())
        return survived and not self.different and not self.lost

    def table(self) -> str:
        """The outcomes as a table of Markdown, and the comparison below it."""
        rows = [
            '| killed | times | resumed from the newest whole checkpoint '
            '| iterations trained again, at most |',
            '| --- | --- | --- | --- |',
        ]
        for moment, outcome in self.outcomes.items():
            name = MOMENTS.get(moment, ANY_TIME)
            numbers = f'{outcome.tried} | {outcome.survived} | {outcome.repeated}'
            rows.append(f'| {name} | {numbers} |')
        tried = sum(outcome.tried for outcome in self.outcomes.values())
        survived = sum(outcome.survived for outcome in self.outcomes.values())
        rows += [
            f'| all | {tried} | {survived} | |',
            '',
            f'checkpoints compared: {len(self.compared)}; different from those of a '
            f'training that was let alone: {len(self.different)} '
            f'{sorted(self.different) or ""}'.rstrip(),
            f'lost: {"; ".join(self.lost) or "nothing"}',
        ]
        return '\n'.join(rows)


class Trial:
    """A training of the demo's model, small, in a folder of its own.

    Args:
        folder: is made; must be new or empty.
        root: folder of the repository, for the tools and configs.
        kills: how often to kill the training.
        workers: processes that load data.
        seed: of the moments.

    Raises:
        ValueError: the folder holds something, or a number makes no sense.
    """

    def __init__(
        self, folder: Path, *, root: Path, kills: int, workers: int = 0, seed: int = 0
    ) -> None:
        if kills < 1:
            raise ValueError(f'--kills: {kills}; give 1 or more')
        if workers < 0:
            raise ValueError(f'--workers: {workers}; give 0 or more')
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(
                f'--work-dir: {str(folder)!r} is not empty; give a new folder, so that '
                'nothing in it is overwritten'
            )
        self.folder = folder.absolute()
        self.root = root
        self.kills = kills
        self.workers = workers
        self.iterations = ITERATIONS_PER_KILL * (kills + 2)
        self.random = random.Random(seed)
        self.alone = self.folder / 'alone'
        self.killed = self.folder / 'killed'
        self.starts = 0
        self.before = 0  # newest whole checkpoint at the last start

    def run(self) -> Result:
        """Trains, kills, resumes and compares.

        Raises:
            RuntimeError: a training that nobody killed did not end well.
        """
        self._write_config()
        start_up = self._train_alone()
        moments = [*MOMENTS, ANY]
        result = Result({moment: Outcome() for moment in moments})
        waiting: list[str] = []
        for number in range(self.kills):
            moment = moments[number % len(moments)]
            self._kill(moment, start_up, result, waiting)
        self.before = self.position
        log = self._end(self._start(self.killed, '--resume'))
        self._judge(log, waiting, result)
        self._compare(result)
        missing = set(scores(self.alone)) - set(scores(self.killed))
        if missing:
            result.lost.append(f'validations at {sorted(missing)}')
        if scores(self.killed) != scores(self.alone) and not missing:
            result.lost.append('validations have other results')
        leftover = [file.name for file in self.killed.glob('.*.tmp')]
        if leftover:
            result.lost.append(f'temporary files are left: {leftover}')
        return result

    def _write_config(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        data = self.folder / 'data'
        write_scenes(data, training=10, validation=3, size=(64, 64))
        text = CONFIG.format(
            base=str(self.root / 'configs/demo/twins_svt_fpn_streets.py'),
            data=str(data),
            workers=self.workers,
            iterations=self.iterations,
            saved_every=SAVED_EVERY,
            validated_every=VALIDATED_EVERY,
        )
        (self.folder / 'config.py').write_text(text, encoding='utf-8')

    def _start(self, work_dir: Path, *arguments: str) -> subprocess.Popen:
        self.starts += 1
        command = [sys.executable, str(self.root / 'tools/train.py'), 'config.py']
        command += ['--work-dir', str(work_dir), *arguments]
        environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
        environment['CUDA_VISIBLE_DEVICES'] = ''
        environment['PYTHONPATH'] = os.pathsep.join(
            [str(self.root), *filter(None, [os.environ.get('PYTHONPATH')])]
        )
        with self._log().open('w', encoding='utf-8') as log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _log(self) -> Path:
        return self.folder / f'start_{self.starts:03}.log'

    def _end(self, process: subprocess.Popen) -> str:
        process.wait()
        log = self._log().read_text(encoding='utf-8', errors='replace')
        if process.returncode != 0:
            raise RuntimeError(
                f'{self._log()}: the training ended with status {process.returncode}: '
                f'{log.strip().splitlines()[-1:]}'
            )
        return log

    def _train_alone(self) -> float:
        """Trains without a kill; returns the seconds up to the first iteration."""
        begin = time.monotonic()
        keep_all = 'default_hooks.checkpoint.max_keep_ckpts=-1'
        process = self._start(self.alone, '--cfg-options', keep_all)
        while process.poll() is None and not any(self.alone.glob('iter_*.pth')):
            time.sleep(0.05)
        seconds = time.monotonic() - begin
        self._end(process)
        return seconds

    def _kill(
        self, moment: str, start_up: float, result: Result, waiting: list[str]
    ) -> None:
        """Starts the training once more and kills it, unless it ends before."""
        arguments = ['--resume']
        if moment != ANY:
            arguments += ['--cfg-options', *self._options(moment)]
        self.before, rows = self.position, len(logged(self.killed))
        process = self._start(self.killed, *arguments)
        if moment == ANY:
            try:
                process.wait(start_up * self.random.uniform(0.4, 1.3))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        try:  # workers, where the process killed itself
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        log = self._log().read_text(encoding='utf-8', errors='replace')
        self._judge(log, waiting, result)
        self._compare(result)
        if process.returncode in ENDED_BY:
            result.outcomes[moment].tried += 1
            waiting.append(moment)
            trained = iterations(logged(self.killed)[rows:])
            outcome = result.outcomes[moment]
            again = max(trained, default=self.position) - self.position
            outcome.repeated = max(outcome.repeated, again)
        elif process.returncode != 0:
            result.lost.append(f'{self._log().name}: status {process.returncode}')

    def _options(self, moment: str) -> list[str]:
        at = self.position + self.random.choice((1, 2, 3, 4))
        if moment == 'removing':
            at = max(at, 3 * SAVED_EVERY)
        settings = dict(
            type='mmseg_twins.Kill',
            moment=moment,
            at=min(at, self.iterations),
            share=round(self.random.uniform(0.05, 0.95), 3),
        )
        return [
            f'default_hooks.kill.{name}={value}' for name, value in settings.items()
        ]

    @property
    def position(self) -> int:
        """The iteration of the newest whole checkpoint, by trying to load them all."""
        done = [0]
        for path in self.killed.glob('iter_*.pth'):
            try:
                load(path)
            except (EOFError, OSError, RuntimeError, ValueError):
                continue
            done.append(int(path.stem.removeprefix('iter_')))
        return max(done)

    def _judge(self, log: str, waiting: list[str], result: Result) -> None:
        """Sees whether the process that follows kills took up their work."""
        match = RESUMED.search(log)
        if match is None and 'nothing to resume' not in log:
            return  # killed before it came to that
        begun = int(match[1]) if match else 0
        if begun == self.before:
            for moment in waiting:
                result.outcomes[moment].survived += 1
        waiting.clear()

    def _compare(self, result: Result) -> None:
        """Compares the checkpoints that the killed training has at present."""
        for path in self.killed.glob('iter_*.pth'):
            try:
                found = load(path)
            except (EOFError, OSError, RuntimeError, ValueError):
                result.lost.append(f'{path.name} cannot be read')
                continue
            other = load(self.alone / path.name)
            result.compared.add(path.name)
            if not all(equal(found[key], other[key]) for key in COMPARED):
                result.different.add(path.name)


def load(path: Path) -> dict:
    """Reads a checkpoint."""
    return torch.load(path, map_location='cpu', weights_only=True)


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
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:  # a line that a kill cut off
                continue
    return rows


def iterations(rows: list[dict]) -> list[int]:
    """The training iterations that were logged."""
    return [row['step'] for row in rows if 'loss' in row]


def scores(work_dir: Path) -> dict[int, float]:
    """The mean IoU of each validation, by iteration."""
    return {row['step']: row['mIoU'] for row in logged(work_dir) if 'mIoU' in row}
