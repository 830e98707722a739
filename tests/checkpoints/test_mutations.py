"""No file makes the readers of checkpoints do anything but convert it or refuse it."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints.fuzz import USES, judge
from checkpoints.mutations import KINDS, mutate

QUICK = {'untouched': 1, 'zip bomb': 1}  # the others are quicker, and made thrice
TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize('kind', KINDS)
def test_mutated_checkpoints_are_refused_in_a_sentence_or_converted_right(
    kind, tmp_path, monkeypatch
):
    uses = itertools.cycle(('predict', 'resume', 'convert'))
    for number in range(QUICK.get(kind, 3)):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)  # where hostile code would leave a file
        suffix, content = mutate(kind, number, 0)
        path = folder / f'source{suffix}'
        path.write_bytes(content)

        outcome, text = judge(USES[next(uses)], path)

        assert outcome in ('refused', 'read'), f'number {number}: {text}'


@pytest.mark.parametrize('use', ['convert', 'predict'])
def test_sound_checkpoints_of_other_looks_are_taken(use, tmp_path):
    suffix, content = mutate('untouched', 1, 0)
    path = tmp_path / f'source{suffix}'
    path.write_bytes(content)

    assert judge(USES[use], path) == ('read', '')


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_two_hundred_mutations_each_in_a_process_with_limits():
    done = subprocess.run(
        [sys.executable, '-m', 'checkpoints.fuzz', '--files=200', '--seed=2'],
        env={**os.environ, 'PYTHONPATH': str(TESTS)},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr[-5000:]
    assert '| all | 200 |' in done.stdout
