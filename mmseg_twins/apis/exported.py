"""Compare an exported file with its segmentor."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from mmseg.models.segmentors import EncoderDecoder
from mmseg.structures import SegDataSample
from torch import Tensor

from ..checkpoints.reading import one_line
from .export import ExportForm, classify, example_image

#: Largest allowed difference of logits, absolute and relative to the largest logit.
TOLERANCE = 1e-3
#: The same with weights in half precision, which rounds each by up to 1/2048; relative
#: to the largest logit only.
TOLERANCE_FP16 = 5e-3
#: Batch, height and width at which a dynamic file is checked, besides the given ones:
#: a single window of 7 in the last stage; one side a multiple of the window at 1/4
#: resolution; several images; sides that are not multiples of a patch.
SIZES = ((1, 224, 224), (1, 448, 512), (3, 96, 160), (1, 250, 333))

RUNS = 7
# For a while after its run, a library's threads occupy cores that the next run needs.
PAUSE_SECONDS = 0.3

Predict = Callable[[Tensor], Tensor]


class DifferenceError(RuntimeError):
    """The results of an exported file differ from the segmentor's."""


@dataclass(frozen=True)
class Difference:
    """The difference between a file and the segmentor at one size.

    Args:
        size: batch, height and width.
        largest: the segmentor's largest absolute logit.
        difference: the largest absolute difference of logits. For a file of classes, at
            the worst pixel, half the distance from the largest logit to that of the
            file's class: logits that differ by that much can lead to that class.
        other: share of pixels whose classes differ.
        limit: the largest allowed difference.
    """

    size: tuple[int, int, int]
    largest: float
    difference: float
    other: float
    limit: float

    @property
    def passes(self) -> bool:
        """Whether the difference is allowed."""
        return self.difference <= self.limit


def load_onnx(path: Path, threads: int | None = None) -> Predict:
    """Load an ONNX file into onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Threads that spin between runs would take cores from PyTorch.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    if threads:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        str(path), options, providers=['CPUExecutionProvider']
    )
    (name,) = (one.name for one in session.get_inputs())
    return lambda image: torch.from_numpy(session.run(None, {name: image.numpy()})[0])


def has_openvino() -> bool:
    """Return whether the extra ``openvino`` is installed."""
    return importlib.util.find_spec('openvino') is not None


def load_openvino(path: Path, threads: int | None = None) -> Predict:
    """Load an ONNX file into OpenVINO on the CPU, in float32."""
    import openvino

    # OpenVINO's default on CPUs with bfloat16 is to compute in bfloat16.
    config: dict[str, object] = {'INFERENCE_PRECISION_HINT': 'f32'}
    if threads:
        config['INFERENCE_NUM_THREADS'] = threads
    model = openvino.Core().compile_model(str(path), 'CPU', config)
    # Copy the result, because the next run overwrites its memory.
    return lambda image: torch.from_numpy(model(image.numpy())[0].copy())


def load_program(path: Path) -> Predict:
    """Load a file of ``torch.export``."""
    with path.open('rb') as file:
        module = torch.export.load(file).module()
    return torch.no_grad()(module)


@torch.no_grad()
def predict_logits(
    segmentor: EncoderDecoder, form: ExportForm, image: Tensor
) -> Tensor:
    """Return the segmentor's logits for images in the form's format."""
    if form.embed_preprocessing:
        # mmsegmentation's format: BGR, channels first.
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
    *,
    fp16_weights: bool = False,
) -> Difference:
    """Compare an exported file with its segmentor on random images.

    Args:
        predict: runs the file.
        form: the exported module, which has the formats of images and results.
        size: batch, height and width.
        fp16_weights: whether the file's weights are in half precision.

    Raises:
        DifferenceError: the file fails, or its result has another shape.
    """
    image = example_image(form, *size, seed=1)
    threshold = segmentor.decode_head.threshold
    logits = predict_logits(segmentor, form, image)
    classes = classify(logits, threshold)
    try:
        result = predict(image)
    except Exception as error:  # onnxruntime and PyTorch raise their own classes
        raise DifferenceError(
            f'at {describe_size(size)} the file fails: {one_line(error)}'
        ) from error
    expected = logits if form.output == 'logits' else classes
    if result.shape != expected.shape:
        raise DifferenceError(
            f'at {describe_size(size)} the file returns {tuple(result.shape)}, but the '
            f'segmentor {tuple(expected.shape)}'
        )
    if form.output == 'logits':
        difference = (result - logits).abs().max()
        result = classify(result, threshold)
    else:
        difference = regret(logits, result, threshold) / 2
    largest = float(logits.abs().max())
    return Difference(
        size=size,
        largest=largest,
        difference=float(difference.nan_to_num(float('inf'))),
        other=float((result != classes).double().mean()),
        limit=TOLERANCE_FP16 * largest
        if fp16_weights
        else TOLERANCE * min(1.0, largest),
    )


def regret(logits: Tensor, classes: Tensor, threshold: float | None) -> Tensor:
    """Return the distance from the largest to the chosen logit, at the worst pixel."""
    if logits.shape[1] == 1:  # the distance to the threshold, where classes differ
        distance = (logits[:, 0] - torch.tensor(threshold).logit()).abs()
        return (distance * (classify(logits, threshold) != classes)).max()
    chosen = logits.gather(1, classes[:, None])[:, 0]
    return (logits.amax(1) - chosen).max()


def describe_size(size: Sequence[int]) -> str:
    """Return a size as text, such as ``2 x 224x224``."""
    batch, height, width = size
    return f'{batch} x {height}x{width}'


def difference_table(differences: Sequence[Difference]) -> str:
    """Return a table of differences."""
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


def latency_table(implementations: Mapping[str, Predict], image: Tensor) -> str:
    """Time implementations in turns, after a warm-up run each, and return a table.

    Args:
        implementations: functions of the image by name; speeds are relative to the last
            one's.
    """
    seconds: dict[str, list[float]] = {name: [] for name in implementations}
    for run in range(RUNS + 1):
        for name, predict in implementations.items():
            time.sleep(PAUSE_SECONDS)
            start = time.perf_counter()
            predict(image)
            if run:
                seconds[name].append(1000 * (time.perf_counter() - start))
    *_, last = map(statistics.median, seconds.values())
    lines = [
        f'{"CPU":>12}  {"median ms":>9}  {"fastest":>7}  {"slowest":>7}  {"speed":>5}'
    ]
    for name, times in seconds.items():
        median = statistics.median(times)
        lines.append(
            f'{name:>12}  {median:9.0f}  {min(times):7.0f}  {max(times):7.0f}  '
            f'{last / median:4.2f}x'
        )
    return '\n'.join(lines)
