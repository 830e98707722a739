"""Repeat one iteration of a training to find where NaN or infinity comes from."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import all_gather_object, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..checkpoints.reading import read_checkpoint
from ..errors import SettingError
from .check_numbers import (
    are_finite,
    image_files,
    in_words,
    learning_rate,
    numbers,
    unwrapped,
)
from .exact_resume import ExactResume
from .latest import candidates, damage

FOLDER = 'replays'
SAVING = ('CheckpointHook', 'Preemption')


def prepare_replay(cfg: Config, iteration: int) -> str | None:
    """Change a training's config for a replay of an iteration.

    The run resumes from the newest intact checkpoint before the iteration, validates
    and saves nothing, and logs to a folder of its own in the work dir.

    Returns:
        The checkpoint; None if the training starts from its beginning.

    Raises:
        SettingError: there is neither a checkpoint from before the iteration nor a
            seed in the config.
    """
    start = None
    for path in candidates(Path(cfg.work_dir)):
        if damage(path) is None:
            meta = read_checkpoint(Path(path), map_location='meta').get('meta', {})
            if meta.get('iter', iteration) < iteration:
                start = path
                break
    if start is not None:
        cfg.load_from, cfg.resume = start, True
    else:
        cfg.resume = False
        if cfg.get('randomness', {}).get('seed') is None:
            raise SettingError(
                f'--replay {iteration}: {cfg.work_dir} has no checkpoint from before '
                'that iteration, and the config has no seed to start over with; give '
                'the seed in the log (or in bad_batches) with --cfg-options '
                'randomness.seed=SEED'
            )
    for key in ('val_cfg', 'val_dataloader', 'val_evaluator'):
        cfg[key] = None
    default = cfg.get('default_hooks', {}).items()
    cfg.default_hooks = {name: hook for name, hook in default if not saves(hook)}
    cfg.default_hooks.checkpoint = None
    cfg.custom_hooks = [h for h in cfg.get('custom_hooks') or [] if not saves(h)]
    cfg.work_dir = str(Path(cfg.work_dir, FOLDER, f'iter_{iteration}'))
    return start


def saves(hook: dict | None) -> bool:
    """Return whether a hook saves checkpoints."""
    kind = (hook or {}).get('type', '')
    return getattr(kind, '__name__', str(kind)).rpartition('.')[2] in SAVING


def replay(runner: Runner, iteration: int) -> str:
    """Train up to an iteration and examine that one.

    Args:
        runner: of a config that :func:`prepare_replay` has changed.
        iteration: its number in the log; the first one is 1.

    Returns:
        The iteration's images, learning rate and losses, and where in the network NaN
        or infinity arises first.

    Raises:
        SettingError: the training does not have the iteration, or the config does not
            have ExactResume.
    """
    runner.register_hook(Examination(iteration))
    try:
        runner.train()
    except Finished as finished:
        return str(finished)
    raise SettingError(f'--replay {iteration}: the training has ended before that')


class Finished(Exception):  # noqa: N818, not an error
    """Ends the training; its message is the report."""


class Examination(Hook):
    """Computes the losses and gradients of one iteration, and ends the training."""

    priority = 'LOWEST'  # after ExactResume, which seeds the generators

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_train(self, runner: Runner) -> None:
        """Check that the training will reach the iteration."""
        first, last = runner.iter + 1, runner.max_iters
        if not first <= self.iteration <= last:
            raise SettingError(
                f'--replay {self.iteration}: this training can replay the iterations '
                f'{first} to {last}'
            )
        if not any(isinstance(hook, ExactResume) for hook in runner.hooks):
            raise SettingError(
                f'--replay {self.iteration}: repeating an iteration needs the hook '
                'mmseg_twins.ExactResume; add it to custom_hooks'
            )

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """Examine the iteration when it is reached."""
        if runner.iter + 1 < self.iteration:
            return
        found = all_gather_object(examine(runner, data_batch))
        if len(found) > 1:
            found = [f'process {rank}\n{text}' for rank, text in enumerate(found)]
        raise Finished(
            f'iteration {self.iteration}, learning rate {learning_rate(runner):.4g}\n'
            + '\n'.join(found)
        )


def examine(runner: Runner, data_batch: Any) -> str:
    """Return the findings of one process for its batch, one per line."""
    wrapper, model = runner.optim_wrapper, runner.model
    segmentor = unwrapped(model)
    lines = [f'images: {", ".join(image_files(data_batch)) or "unknown"}']
    states = [*segmentor.named_parameters(), *segmentor.named_buffers()]
    bad = [name for name, value in states if has_bad_numbers(value)]
    if bad:
        lines.append(f'not finite before the iteration: {", ".join(bad)}')

    # Compiled modules would not call hooks. Gradients are not averaged over processes,
    # so that each examines those of its own images.
    unshared = model.no_sync() if hasattr(model, 'no_sync') else nullcontext()
    with torch.compiler.set_stance('force_eager'), watch(segmentor) as seen, unshared:
        # An error in the backward pass of one process would leave the others waiting.
        anomalies = torch.autograd.set_detect_anomaly(True, get_world_size() == 1)
        with anomalies, wrapper.optim_context(model):
            data = segmentor.data_preprocessor(data_batch, training=True)
            if any(map(has_bad_numbers, tree_leaves(data['inputs']))):
                lines.append('the images themselves are not finite')
            losses = model._run_forward(data, mode='loss')
            loss, terms = segmentor.parse_losses(losses)
            values = numbers(terms)
            lines.append(f'losses: {in_words(values)}')
            if seen.outputs:
                lines.append(
                    'forward pass: the first output that is not finite is that of '
                    f'{seen.outputs[0]}'
                )
            elif not are_finite(values):
                lines.append(
                    'forward pass: the outputs of all modules are finite; the loss '
                    'itself is not'
                )
            else:
                lines += backward(loss, seen)
    if len(lines) == 2:
        lines.append('all of its outputs and gradients are finite')
    return '\n'.join(lines)


class Seen:
    """Where hooks have found NaN or infinity.

    Attributes:
        outputs: modules with such an output, in the order of computation.
        gradients: outputs and parameters with such a gradient, likewise.
        last: the last output or parameter with a finite gradient before those.
    """

    def __init__(self) -> None:
        self.outputs: list[str] = []
        self.gradients: list[str] = []
        self.last = 'the loss'

    def output(self, name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        """Check a module's output, and later its gradient."""
        for value in tree_leaves(output):
            if has_bad_numbers(value):
                self.outputs.append(name)
            if isinstance(value, Tensor) and value.requires_grad:
                value.register_hook(partial(self.gradient, f'the output of {name}'))

    def gradient(self, name: str, gradient: Tensor) -> None:
        """Check a gradient."""
        if has_bad_numbers(gradient):
            self.gradients.append(name)
        elif not self.gradients:
            self.last = name


@contextmanager
def watch(model: nn.Module) -> Iterator[Seen]:
    """Collect where forward and backward pass have NaN or infinity."""
    seen = Seen()
    handles = [
        module.register_forward_hook(partial(seen.output, name or 'the segmentor'))
        for name, module in model.named_modules()
    ]
    handles += [
        parameter.register_hook(partial(seen.gradient, name))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def backward(loss: Tensor, seen: Seen) -> list[str]:
    """Run the backward pass; return where it is not finite, and PyTorch's report."""
    lines, problem = [], None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        try:
            loss.backward()
        except RuntimeError as error:
            problem = str(error)
    if seen.gradients or problem:
        at = f'at {seen.gradients[0]}' if seen.gradients else 'after it'
        lines.append(
            f'backward pass: the first gradient that is not finite is {at}; the last '
            f'finite one before it is at {seen.last}'
        )
    if problem:
        lines.append(f'PyTorch: {problem}')
        lines += [
            str(each.message) for each in caught if 'forward' in str(each.message)
        ]
    return lines


def has_bad_numbers(value: Any) -> bool:
    """Return whether a value is a tensor with NaN or infinity."""
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and not bool(torch.isfinite(value).all())
    )
