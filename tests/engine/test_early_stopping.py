"""Early stopping in runs that are killed between the validations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmseg_twins.engine.checkpoint_hook import AtomicBackend

# The validation after iteration 5 is the second in a row without progress.
SCORES = {1: 10.0, 2: 20.0, 3: 30.0, 4: 29.0, 5: 28.0, 6: 40.0, 7: 50.0, 8: 60.0}
STOP = dict(type='mmseg_twins.EarlyStopping', monitor='mIoU', min_delta=0.1, patience=2)


class Killed(BaseException):
    """Ends a run as a signal would, past all handlers of exceptions."""


@HOOKS.register_module(force=True)
class KillBefore(Hook):
    """Ends the run when an iteration is to begin."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if runner.iter + 1 == self.iteration:
            raise Killed


@pytest.fixture
def run(train, monkeypatch):
    """Trains eight iterations, each followed by a validation with a given score."""
    validated: list[int] = []

    def evaluate(evaluator: Evaluator, size: int) -> dict[str, float]:
        at = validated[-1]
        return dict(mIoU=SCORES[at])

    monkeypatch.setattr(Evaluator, 'evaluate', evaluate)

    @HOOKS.register_module(force=True)
    class Note(Hook):
        def before_val(self, runner: Runner) -> None:
            validated.append(runner.iter)

    def start(*, kill_before: int | None = None, stop: dict = STOP, **settings):
        validated.clear()
        hooks = [stop, dict(type='Note')]
        if kill_before is not None:
            hooks.append(dict(type='KillBefore', iteration=kill_before))
        train(
            custom_hooks=hooks,
            train_cfg__max_iters=8,
            train_cfg__val_interval=1,
            **{'default_hooks__checkpoint__interval': 1, **settings},
        )
        return list(validated)

    return start


def test_it_stops_where_there_was_no_progress(run):
    assert run() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize('done', [1, 2, 3, 4])
def test_a_resumed_run_stops_at_the_same_validation(run, done: int):
    with pytest.raises(Killed):
        run(kill_before=done + 1)

    assert run(resume=True) == list(range(done + 1, 6))


def test_validations_since_the_checkpoint_count_once(run):
    saved = {'default_hooks__checkpoint__interval': 3}
    with pytest.raises(Killed):
        run(kill_before=5, **saved)

    assert run(resume=True, **saved) == [3, 4, 5]


def test_a_validation_that_is_repeated_counts_once(run, monkeypatch):
    put = AtomicBackend.put

    def killed_when_noted(self, obj: bytes, filepath) -> None:
        if Path(filepath).name == 'last_validation' and obj == b'4\n':
            raise Killed
        put(self, obj, filepath)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(AtomicBackend, 'put', killed_when_noted)
        run()

    assert run(resume=True) == [4, 5]


def test_a_run_that_has_stopped_does_not_go_on(run):
    run()
    assert run(resume=True) == []


def test_more_patience_lets_it_go_on(run):
    run()
    assert run(resume=True, stop={**STOP, 'patience': 3}) == [6, 7, 8]


def test_a_new_run_in_the_same_folder_counts_from_zero(run):
    run()
    assert run() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize('text', ['', 'no JSON', '[1, 2]', '{"a": 1}', '{"1": null}'])
def test_a_broken_file_of_scores_counts_as_none(run, tmp_path: Path, text: str):
    with pytest.raises(Killed):
        run(kill_before=4)
    file = tmp_path / 'run/validation_scores.json'
    assert list(json.loads(file.read_text())) == ['1', '2', '3']

    file.write_text(text)
    assert run(resume=True) == [4, 5, 6, 7, 8]


def test_mmengines_hook_forgets(run):
    forgetful = {**STOP, 'type': 'EarlyStoppingHook'}
    with pytest.raises(Killed):
        run(kill_before=5, stop=forgetful)

    assert run(resume=True, stop=forgetful) == [5, 6, 7, 8]
