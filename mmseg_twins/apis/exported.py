"""An exported file beside the segmentor that it comes from: results and latency."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from mmseg.models.segmentors import EncoderDecoder
from mmseg.structures import SegDataSample
from torch import Tensor

from .export import ExportForm, classify, example_image

#: Logits may differ by this, and by this share of the largest logit.
TOLERANCE = 1e-3
#: Batch, height and width that a dynamic file is checked at, besides the given ones:
#: small; one side a multiple of the window at 1/4 resolution; several images; sides
#: that patches do not divide.
SIZES = ((1, 224, 224), (1, 448, 512), (3, 96, 160), (1, 250, 333))

RUNS = 7
# The threads of one library look for work for a while after its run, on cores that the
# other's run would need.
PAUSE_SECONDS = 0.3

Predict = Callable[[Tensor], Tensor]


class DifferenceError(RuntimeError):
    """An exported file that does not compute what the segmentor does."""


@dataclass(frozen=True)
class Difference:
    """How far a file is from the segmentor at one size.

    Args:
        size: batch, height and width.
        largest: the largest logit of the segmentor, absolute.
        difference: the largest absolute difference of logits. Of classes, where
            logits are not known: by how much the logit of the file's class is below
            the largest logit of the pixel.
        other: share of pixels whose classes differ.
    """

    size: tuple[int, int, int]
    largest: float
    difference: float
    other: float

    @property
    def limit(self) -> float:
        """The largest difference that passes."""
        return TOLERANCE * min(1.0, self.largest)

    @property
    def passes(self) -> bool:
        """Whether the file is right at this size."""
        return self.difference <= self.limit


def load_onnx(path: Path, threads: int | None = None) -> Predict:
    """A file's computation, by onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Threads that wait for the next run would take cores from PyTorch's.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    if threads:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        str(path), options, providers=['CPUExecutionProvider']
    )
    (name,) = (one.name for one in session.get_inputs())
    return lambda image: torch.from_numpy(session.run(None, {name: image.numpy()})[0])


def load_program(path: Path) -> Predict:
    """A file's computation, by PyTorch."""
    with path.open('rb') as file:
        # The guards of a program are stricter than what it computes.
        module = torch.export.load(file).module(check_guards=False)
    return torch.no_grad()(module)


@torch.no_grad()
def predict_logits(segmentor: EncoderDecoder, form: ExportForm, image: Tensor):
    """What the segmentor itself makes of an image of the form's kind."""
    if form.embed_preprocessing:
        # As mmsegmentation reads and prepares an image: BGR, channels first.
        images = [one.flip(2).permute(2, 0, 1) for one in image]
        samples = [SegDataSample(metainfo=dict(img_shape=image.shape[1:3]))]
        data = dict(inputs=images, data_samples=samples * len(images))
        preprocessor = segmentor.data_preprocessor
        test_cfg, preprocessor.test_cfg = preprocessor.test_cfg, None  # no padding
        try:
            image = preprocessor(data)['inputs']
        finally:
            preprocessor.test_cfg = test_cfg
    meta = dict(img_shape=tuple(image.shape[2:]))
    return segmentor.encode_decode(image, [meta] * len(image))


def compare(
    predict: Predict,
    segmentor: EncoderDecoder,
    form: ExportForm,
    size: tuple[int, int, int],
) -> Difference:
    """Compares at one size, on random images.

    A file of classes is right where logits within the tolerance lead to its classes:
    the logit of a class that it prefers is at most twice the tolerance below the
    largest. The difference is half of that, so that one limit holds for both.

    Args:
        predict: the file's computation.
        segmentor: the one that the form is of.
        form: tells which kind of image, and of output.
        size: batch, height and width.
    """
    image = example_image(form, *size, seed=1)
    logits = predict_logits(segmentor, form, image)
    classes = classify(logits, segmentor.decode_head.threshold)
    result = predict(image)
    wanted = logits if form.output == 'logits' else classes
    if result.shape != wanted.shape:
        raise DifferenceError(
            f'at {describe_size(size)} the file returns {tuple(result.shape)}, and the '
            f'segmentor {tuple(wanted.shape)}'
        )
    if form.output == 'logits':
        difference = (result - logits).abs().max()
        result = classify(result, segmentor.decode_head.threshold)
    else:
        difference = regret(logits, result, segmentor.decode_head.threshold) / 2
    return Difference(
        size=size,
        largest=float(logits.abs().max()),
        difference=float(difference.nan_to_num(float('inf'))),
        other=float((result != classes).double().mean()),
    )


def regret(logits: Tensor, classes: Tensor, threshold: float | None) -> Tensor:
    """By how much chosen classes miss the largest logit, at the worst pixel."""
    if logits.shape[1] == 1:  # the distance to the threshold, where it decides wrongly
        distance = (logits[:, 0] - torch.tensor(threshold).logit()).abs()
        return (distance * (classify(logits, threshold) != classes)).max()
    chosen = logits.gather(1, classes[:, None])[:, 0]
    return (logits.amax(1) - chosen).max()


def describe_size(size: Sequence[int]) -> str:
    """A size for people: ``2 x 224x224``."""
    batch, height, width = size
    return f'{batch} x {height}x{width}'


def difference_table(differences: Sequence[Difference]) -> str:
    """The differences, a line each."""
    lines = [
        f'{"images x size":>15}  {"largest logit":>13}  {"difference":>10}  '
        f'{"limit":>8}  {"other class":>11}'
    ]
    for one in differences:
        lines.append(
            f'{describe_size(one.size):>15}  {one.largest:13.4g}  '
            f'{one.difference:10.1e}  {one.limit:8.1e}  {one.other:11.4%}'
            + ('' if one.passes else '  WRONG')
        )
    return '\n'.join(lines)


def measure(
    implementations: Mapping[str, Predict], image: Tensor, runs: int = RUNS
) -> dict[str, list[float]]:
    """Times implementations in turns, so that all meet the same load of the machine.

    Args:
        implementations: functions of the image, by name; each runs once to warm up.
        image: what they get.
        runs: timed runs of each.

    Returns:
        Seconds of each run, by name.
    """
    seconds = {name: [] for name in implementations}
    for run in range(runs + 1):
        for name, predict in implementations.items():
            time.sleep(PAUSE_SECONDS)
            start = time.perf_counter()
            predict(image)
            if run:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def latency_table(seconds: Mapping[str, list[float]]) -> str:
    """The times, a line each; the ratio is to the last implementation."""
    *_, last = (statistics.median(times) for times in seconds.values())
    lines = [
        f'{"CPU":>12}  {"median ms":>9}  {"fastest":>7}  {"slowest":>7}  {"speed":>5}'
    ]
    for name, times in seconds.items():
        median = statistics.median(times)
        lines.append(
            f'{name:>12}  {1000 * median:9.0f}  {1000 * min(times):7.0f}  '
            f'{1000 * max(times):7.0f}  {last / median:4.2f}x'
        )
    return '\n'.join(lines)
