"""Compare the operations of ``mmseg_twins.ops`` with plain implementations.

Versions run forward and backward in turns, at the sizes of UPerNet with SVT-S and
images of 512x512 px. A version that is slower on a device should not be chosen there.
The Markdown table goes to stdout.
"""

from __future__ import annotations

import mmseg_twins  # noqa: F401, handles Ctrl-C while the rest is imported

# isort: split
import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from benchmarking.machine import DTYPES, describe_machine, measure_gemm_peak
from benchmarking.measurement import relative_difference
from benchmarking.report import machine_facts
from benchmarking.session import release_unused, steps_of_turn, synchronize, to_arrays
from torch import Tensor
from torch.nn import functional as F

from mmseg_twins import ops
from mmseg_twins.cli import common as cli
from mmseg_twins.interrupts import run as run_program

loss_module, window_module = (
    sys.modules[f'mmseg_twins.ops.{name}']
    for name in ('upsampled_cross_entropy', 'window_attention')
)
Version = Callable[..., Tensor]
Step = Callable[[], list[Tensor]]
Operation = tuple[str, list[Tensor], dict[str, Version]]
WINDOW = 7


def pyramid(*tensors: Tensor) -> Tensor:
    """Convolve maps of a pyramid with the package's operation; the weight is last."""
    *maps, weight = tensors
    return ops.pyramid_conv3x3(maps, weight, None, False)


def plain_pyramid(*tensors: Tensor) -> Tensor:
    """Upsample, concatenate and convolve."""
    *maps, weight = tensors
    size = maps[0].shape[2:]
    maps = [F.interpolate(x, size, mode='bilinear') for x in maps]
    return F.conv2d(torch.cat(maps, dim=1), weight, padding=1)


def channels_last(version: Version) -> Version:
    """Run a version with maps in channels_last memory format."""

    def run(*tensors: Tensor) -> Tensor:
        return version(*(x.to(memory_format=torch.channels_last) for x in tensors))

    return run


def loss_of(labels: Tensor) -> Version:
    """Return the package's loss."""
    return lambda x: ops.upsampled_cross_entropy(x, labels, align_corners=False)[0]


def plain_loss_of(labels: Tensor) -> Version:
    """Return the loss at full resolution."""
    return lambda x: loss_module.plain(x, labels, False, 255, None)[0]


def windows_of(heads: int) -> Version:
    """Return attention in windows without padding, as in eager mode."""

    def run(x: Tensor, weight: Tensor) -> Tensor:
        tokens, windows = ops.to_windows(ops.in_autocast_type(x), WINDOW)
        out = ops.window_attention(F.linear(tokens, weight), windows, heads)
        return ops.from_windows(out, windows)

    return run


def filled_windows_of(heads: int) -> Version:
    """Return attention in padded windows with a mask, as with dynamic sizes."""

    def run(x: Tensor, weight: Tensor) -> Tensor:
        windows = ops.Windows(WINDOW, *x.shape[1:3], is_filled=True)
        tokens = window_module.fill(ops.in_autocast_type(x), windows)
        out = ops.window_attention(F.linear(tokens, weight), windows, heads)
        return ops.from_windows(out, windows)

    return run


def operations(batch: int, shrink: int, device: torch.device) -> Iterator[Operation]:
    """Yield operations: title, inputs, and versions, the package's choice first.

    Args:
        shrink: divisor of the numbers of channels and classes.
    """

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).requires_grad_()

    width = 512 // shrink
    for title, sides in (
        ('pyramid, 4 levels of 128 to 16', (128, 64, 32, 16)),
        ('pooling pyramid, 16 and 1 to 6', (16, 1, 2, 3, 6)),
    ):
        maps = [random(batch, width, side, side) for side in sides]
        weight = random(width, width * len(maps), 3, 3)
        versions = {
            'mmseg_twins.ops': pyramid,
            'plain': plain_pyramid,
            'ops, channels_last': channels_last(pyramid),
            'plain, channels_last': channels_last(plain_pyramid),
        }
        yield title, [*maps, weight], versions
    versions = {'mmseg_twins.ops': ops.conv3x3}
    versions['channels_last'] = channels_last(ops.conv3x3)
    inputs = [random(batch, width, 128, 128), random(width, width, 3, 3)]
    yield 'convolution 3x3 at 128', inputs, versions
    classes = max(150 // shrink, 2)
    labels = torch.randint(classes, (batch, 512, 512), device=device)
    versions = {'mmseg_twins.ops': loss_of(labels), 'plain': plain_loss_of(labels)}
    yield 'loss of logits at 128', [random(batch, classes, 128, 128)], versions
    for side, channels in ((128, 64), (32, 256)):
        heads = channels // 32
        versions = {
            'mmseg_twins.ops': windows_of(heads),
            'masked': filled_windows_of(heads),
        }
        inputs = [random(batch, side, side, channels), random(3 * channels, channels)]
        yield f'windows of a map of {side}', inputs, versions


class Row(NamedTuple):
    """The measurement of a version."""

    name: str
    seconds: float | None = None  # None if it ran out of memory
    memory: int | None = None  # bytes in addition to the inputs, on a GPU
    difference: float = 0.0  # from the first version, relative (RMS)


def step_of(version: Version, inputs: Sequence[Tensor], dtype: str) -> Step:
    """Return a function that runs a version forward and backward."""
    device = inputs[0].device.type
    enabled = dtype != 'fp32'

    def step() -> list[Tensor]:
        with torch.autocast(device, DTYPES[dtype] if enabled else None, enabled):
            out = version(*inputs)
        return [out, *torch.autograd.grad(out, inputs, torch.ones_like(out))]

    return step


def seconds_of(step: Step, count: int, device: torch.device) -> float:
    """Return the average seconds of several steps."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        step()
    synchronize(device)
    return (time.perf_counter() - start) / count


def peak_of(step: Step, device: torch.device) -> int | None:
    """Return the peak of memory of a step on a GPU, in bytes."""
    if device.type != 'cuda':
        return None
    release_unused(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def compare(operation: Operation, dtype: str, rounds: int) -> list[Row]:
    """Measure the versions of an operation, in turns."""
    _, inputs, versions = operation
    device = inputs[0].device
    rows, counts, expected = {}, {}, None
    steps = {
        name: step_of(version, inputs, dtype) for name, version in versions.items()
    }
    for name, step in steps.items():
        try:
            found = to_arrays(step())
            expected = expected or found
            pairs = zip(found, expected, strict=True)
            difference = max(relative_difference([x], [y]) for x, y in pairs)
            counts[name] = steps_of_turn(seconds_of(step, 1, device))
            rows[name] = Row(name, None, peak_of(step, device), difference)
        except torch.OutOfMemoryError:
            rows[name] = Row(name)
            release_unused(device)
    times: dict[str, list[float]] = {name: [] for name in counts}
    for _ in range(rounds):
        for name, count in counts.items():
            times[name].append(seconds_of(steps[name], count, device))
    for name, some in times.items():
        rows[name] = rows[name]._replace(seconds=statistics.median(some))
    return list(rows.values())


def lines_of(title: str, rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of a table; times are relative to the first version's."""
    for row in rows:
        first, title = title, ''
        if row.seconds is None:
            yield f'| {first} | {row.name} | out of memory | - | - | - |'
            continue
        slower = f'{row.seconds / rows[0].seconds:.2f}' if rows[0].seconds else '-'
        memory = '-' if row.memory is None else f'{row.memory / 1e6:.0f}'
        yield (
            f'| {first} | {row.name} | {1e3 * row.seconds:.3g} | {slower} | {memory} | '
            f'{row.difference:.0e} |'
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--device', choices=['cpu', 'cuda'], help='default: the GPU if there is one'
    )
    parser.add_argument('--dtypes', nargs='+', choices=DTYPES, default=['fp32', 'bf16'])
    for name, default, text in (
        ('--batch', 4, 'number of images'),
        ('--rounds', 7, 'turns of each version'),
        ('--shrink', 1, 'divisor of the numbers of channels and classes'),
    ):
        parser.add_argument(
            name, type=cli.positive, default=default, metavar='N', help=text
        )
    args = parser.parse_args(argv)
    has_gpu = torch.cuda.is_available()
    if args.device == 'cuda' and not has_gpu:
        parser.error('--device cuda: PyTorch finds no GPU')

    device = torch.device(args.device or ('cuda' if has_gpu else 'cpu'))
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    peaks = {dtype: measure_gemm_peak(dtype, device) for dtype in args.dtypes}
    facts = machine_facts(describe_machine(device, None), peaks)
    print('\n'.join(f'- {fact}' for fact in facts))
    print(
        f'\n| operation, batch {args.batch} | version | ms | of the first | MB | off |'
    )
    print('| --- | --- | ---: | ---: | ---: | ---: |')
    for operation in operations(args.batch, args.shrink, device):
        for dtype in args.dtypes:
            rows = compare(operation, dtype, args.rounds)
            for line in lines_of(f'{operation[0]}, {dtype}', rows):
                print(line, flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(run_program(main))
