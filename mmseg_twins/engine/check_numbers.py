"""Ends a training at a loss or gradient that is NaN or infinite, before it spreads.

mmengine does not check for such numbers, and its hooks run after the optimizer's step,
which has spread them to every weight by then: the run goes on, and checkpoints full of
NaN replace the good ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from mmengine.dist import all_gather_object, all_reduce, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn

from ..checkpoints.writing import replacing
from ..errors import SettingError, TrainingError
from ..registry import HOOKS

FOLDER = 'bad_batches'
ACTIONS = ('stop', 'skip')
# The standard deviation of normally distributed numbers, in median absolute deviations.
NORMAL_SPREAD = 1.4826
NAMED = 3  # parameters that a message names


@HOOKS.register_module()
class CheckNumbers(Hook):
    """Guards a training against losses and gradients that are NaN or infinite.

    They are checked between the backward pass and the optimizer's step, for each batch
    also where gradients are accumulated. A gradient so large that the sum of its
    squares overflows counts as infinite, because AdamW squares it as well. All
    processes of a run decide alike. With fp16, gradients that overflow at a loss scale
    above 1 are left to the loss scaler, which skips the update and lowers the scale.

    The message names the iteration, the learning rate, the losses, the parameters, the
    images and the last checkpoint. ``bad_batches/iter_N.json`` in the work dir has the
    details; ``tools/train.py CONFIG --replay N`` repeats the iteration.

    mmengine synchronizes with an accelerator once per iteration, to read the losses
    after the optimizer's step. With ``on_bad='stop'`` the result of the check is read
    just after that, without another synchronization. The weights on the accelerator
    have been updated by then, but the run ends before they are averaged or saved. On a
    CPU there is no such update, nor with ``on_bad='skip'``, which synchronizes once
    more, before the step.

    Args:
        on_bad: ``'stop'`` ends the run. ``'skip'`` restores the weights, the
            optimizer's state and the model's buffers (running means) from before the
            batch, logs a warning, and goes on.
        max_skips: number of updates in a row that ``'skip'`` skips before it ends the
            run.
        spike: a warning is logged for a loss that exceeds the median of the last
            ``window`` losses by more than this many times their spread. The spread is
            the median absolute deviation, scaled to the standard deviation of a normal
            distribution, and at least 1 % of the median. None for no warnings. Each
            process checks its own losses.
        window: number of losses.

    Raises:
        SettingError: an argument has a value that is not allowed.
        TrainingError: a loss or gradient is NaN or infinite.

    Example:
        >>> default_hooks = dict(numbers=dict(type='mmseg_twins.CheckNumbers'))
    """

    # After mmengine's RuntimeInfoHook, which reads the losses, and before all hooks
    # that average, log or save.
    priority = 'VERY_HIGH'

    def __init__(
        self,
        on_bad: str = 'stop',
        *,
        max_skips: int = 5,
        spike: float | None = 10.0,
        window: int = 100,
    ) -> None:
        if on_bad not in ACTIONS:
            raise SettingError(
                f'CheckNumbers: on_bad={on_bad!r}; give one of {", ".join(ACTIONS)}'
            )
        for name, value in dict(max_skips=max_skips, window=window).items():
            if not isinstance(value, int) or value < 1:
                raise SettingError(
                    f'CheckNumbers: {name}={value!r}; give a positive integer'
                )
        if spike is not None and not spike > 0:
            raise SettingError(
                f'CheckNumbers: spike={spike!r}; give a positive number, or None for '
                'no warnings'
            )
        self.on_bad = on_bad
        self.max_skips = max_skips
        self.spike = spike
        self.window = window
        self._originals: tuple[Callable, Callable]
        self._parameters: list[tuple[str, nn.Parameter]] = []
        self._buffers: list[Tensor] = []
        self._saved_buffers: list[Tensor] = []
        self._checked: list[str] = []  # names of the parameters that have `_norms`
        self._norms: Tensor | None = None
        self._flag: Tensor | None = None  # above 0 for a bad batch; None once read
        self._found = False  # whether this batch is bad
        self._spoiled = False  # whether the gradients accumulated so far are bad
        self._skips = 0
        self._spiked = False

    def before_train(self, runner: Runner) -> None:
        """Insert the check between backward pass and optimizer's step."""
        wrapper = runner.optim_wrapper
        if isinstance(wrapper, OptimWrapperDict):
            raise SettingError(
                'CheckNumbers: optim_wrapper has several optimizers, whose steps are '
                'in the model; leave the hook out'
            )
        model = unwrapped(runner.model)
        self._parameters = [
            (name.replace('_fsdp_wrapped_module.', ''), parameter)
            for name, parameter in model.named_parameters()
        ]
        if self.on_bad == 'skip':
            self._buffers = list(model.buffers())
            self._saved_buffers = [buffer.clone() for buffer in self._buffers]
        # mmengine's schedulers count the calls of `step` in the same manner.
        self._originals = wrapper.backward, wrapper.step
        wrapper.backward = update_wrapper(
            partial(self._backward, wrapper, wrapper.backward), wrapper.backward
        )
        wrapper.step = update_wrapper(partial(self._step, wrapper.step), wrapper.step)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """Save the buffers, which the forward pass of a bad batch spoils."""
        if self._buffers:
            torch._foreach_copy_(self._saved_buffers, self._buffers)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        """End the run or skip the update if the batch is bad.

        Raises:
            TrainingError: the batch is bad, and the update is not skipped.
        """
        self._read_flag()
        if not self._found:
            self._watch_for_spikes(runner, data_batch, outputs)
            return
        self._found = False
        message = self._report(runner, data_batch, outputs)
        if self.on_bad == 'stop':
            raise TrainingError(message)
        self._skips += 1
        if self._skips > self.max_skips:
            raise TrainingError(
                f'{message}; {self.max_skips} updates before it were skipped in a row'
            )
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._saved_buffers)
        runner.logger.warning(
            f'{message}; the update is skipped ({self._skips} in a row, the run ends '
            f'after {self.max_skips})'
        )

    def after_train(self, runner: Runner) -> None:
        """Remove the check."""
        wrapper = runner.optim_wrapper
        wrapper.backward, wrapper.step = self._originals

    def _backward(
        self, wrapper: OptimWrapper, backward: Callable, loss: Tensor, **kwargs
    ) -> None:
        backward(loss, **kwargs)
        if not self._spoiled:
            self._flag = self._check(wrapper, loss.detach())

    @torch.no_grad()
    def _check(self, wrapper: OptimWrapper, loss: Tensor) -> Tensor:
        """Return a number above 0 for bad loss or gradients, without synchronizing."""
        found = [
            (name, parameter.grad)
            for name, parameter in self._parameters
            if parameter.grad is not None and parameter.grad.numel()
        ]
        self._checked = [name for name, _ in found]
        self._norms = (
            torch.stack(torch._foreach_norm([gradient for _, gradient in found]))
            if found
            else loss.new_zeros(1)
        )
        is_bad = ~torch.isfinite(self._norms).all()
        scaler = getattr(wrapper, 'loss_scaler', None)
        if scaler is not None:
            is_bad &= scaler.scale(torch.ones_like(loss)) <= 1
        flag = (is_bad | ~torch.isfinite(loss)).float()
        all_reduce(flag, 'max')
        return flag

    def _step(self, step: Callable, **kwargs) -> None:
        if self.on_bad == 'skip' or (self._flag is not None and self._flag.is_cpu):
            self._read_flag()
        if self._spoiled:
            self._spoiled = False
            return
        step(**kwargs)
        self._skips = 0

    def _read_flag(self) -> None:
        if self._flag is not None:
            self._found = self._spoiled = bool(self._flag)
            self._flag = None

    def _report(
        self, runner: Runner, data_batch: dict | None, outputs: dict | None
    ) -> str:
        """Write a record of a bad batch; return a sentence about it."""
        norms = self._norms.tolist() if self._norms is not None else []
        bad = [
            name
            for name, norm in zip(self._checked, norms, strict=False)
            if not math.isfinite(norm)
        ]
        files, losses = image_files(data_batch), numbers(outputs)
        processes = all_gather_object(dict(files=files, losses=losses, parameters=bad))
        guilty = [each for each in processes if not are_finite(each['losses'])]
        shown = (guilty or processes)[0]
        files = [file for each in guilty or processes for file in each['files']]
        bad = max((each['parameters'] for each in processes), key=len)
        rate = learning_rate(runner)
        number = runner.iter + 1
        record = dict(
            iteration=number,
            seed=runner.seed,
            learning_rate=rate,
            last_checkpoint=runner.message_hub.get_info('last_ckpt'),
            processes=processes,
        )
        where = Path(runner.work_dir, FOLDER, f'iter_{number}.json')
        problem = write_record(where, record) if is_main_process() else None

        states = 'is not' if guilty else 'is'
        sentence = (
            f'iteration {number}: the loss {states} finite '
            f'({in_words(shown["losses"])}; learning rate {rate:.4g})'
        )
        if bad:
            sentence += (
                f'{", nor are" if guilty else ", but"} the gradients of {len(bad)} of '
                f'{len(self._parameters)} parameters{"" if guilty else " are not"} '
                f'({abridged(bad)})'
            )
        sentence += f'; images: {", ".join(files) or "unknown"}; '
        sentence += (
            f'last checkpoint: {record["last_checkpoint"]}; '
            if record['last_checkpoint']
            else 'no checkpoint has been saved yet; '
        )
        return sentence + (
            problem or f'{where} has the details, and --replay {number} repeats it'
        )

    def _watch_for_spikes(
        self, runner: Runner, data_batch: dict | None, outputs: dict | None
    ) -> None:
        history = runner.message_hub.log_scalars.get('train/loss')
        if self.spike is None or history is None:
            return
        losses = history.data[0][-self.window - 1 :]
        earlier, loss = losses[:-1], losses[-1]
        if len(earlier) < self.window:
            return
        limit = spike_limit(earlier, self.spike)
        had_spiked, self._spiked = self._spiked, loss > limit
        if self._spiked and not had_spiked:
            runner.logger.warning(
                f'iteration {runner.iter + 1}: the loss jumps '
                f'({in_words(numbers(outputs))}; learning rate '
                f'{learning_rate(runner):.4g}); the median of the {self.window} '
                f'losses before is {np.nanmedian(earlier):.4g}, and a loss above '
                f'{limit:.4g} is a spike; images: '
                f'{", ".join(image_files(data_batch)) or "unknown"}'
            )


def spike_limit(losses: np.ndarray, spike: float) -> float:
    """Return the loss above which a loss is a spike, given earlier losses."""
    median = np.nanmedian(losses)
    spread = NORMAL_SPREAD * np.nanmedian(np.abs(losses - median))
    return float(median + spike * max(spread, 0.01 * abs(median)))


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside mmengine's wrapper for distributed training."""
    return cast(nn.Module, model.module) if is_model_wrapper(model) else model


def image_files(data_batch: dict | None) -> list[str]:
    """Return the paths of a batch's images, as far as they are known."""
    samples = (data_batch or {}).get('data_samples', ())
    paths = [sample.metainfo.get('img_path') for sample in samples]
    return [str(path) for path in paths if path is not None]


def numbers(outputs: dict | None) -> dict[str, float]:
    """Return the outputs of a training step as Python numbers."""
    return {
        name: float(value.detach() if isinstance(value, Tensor) else value)
        for name, value in (outputs or {}).items()
    }


def are_finite(losses: Mapping[str, float]) -> bool:
    """Return whether all losses are finite; accuracies do not count."""
    return all(math.isfinite(x) for name, x in losses.items() if 'loss' in name)


def learning_rate(runner: Runner) -> float:
    """Return the learning rate as the log shows it."""
    rates: dict[str, list[float]] = runner.optim_wrapper.get_lr()
    return rates.get('base_lr', rates['lr'])[0]


def in_words(losses: Mapping[str, float]) -> str:
    """Return losses as one line of text."""
    return ', '.join(f'{name} {value:.4g}' for name, value in losses.items())


def abridged(names: list[str]) -> str:
    """Return the first names and the last one."""
    if len(names) <= NAMED + 1:
        return ', '.join(names)
    return f'{", ".join(names[:NAMED])} to {names[-1]}'


def write_record(path: Path, record: dict[str, Any]) -> str | None:
    """Write a record as JSON; return the problem, if any, as a sentence."""
    text = json.dumps(with_text_for_nan(record), indent=1, allow_nan=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, force=True) as temporary:
            temporary.write_text(text, encoding='utf-8')
    except OSError as error:
        return f'{path} could not be written ({error.strerror or error})'
    return None


def with_text_for_nan(value: Any) -> Any:
    """Return plain data with NaN and infinities, which JSON lacks, as text."""
    if isinstance(value, dict):
        return {key: with_text_for_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [with_text_for_nan(each) for each in value]
    is_bad = isinstance(value, float) and not math.isfinite(value)
    return str(value) if is_bad else value
