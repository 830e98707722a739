"""Export segmentors to ONNX and ``torch.export``, for fixed or dynamic image sizes.

The segmentor's own modules are traced. With dynamic sizes, the operations of
:mod:`mmseg_twins.ops` compute bins, windows and paddings inside the graph. ONNX needs
the extra ``deploy``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F
from torch.utils._sympy.value_ranges import ValueRanges

from .. import ops
from ..checkpoints.dataset_meta import configured_meta
from ..checkpoints.reading import one_line
from ..errors import SettingError
from ..version import __version__

OUTPUTS = ('logits', 'classes')
#: The packages for writing ONNX, all in the extra ``deploy``.
DEPLOY_PACKAGES = ('onnx', 'onnxruntime', 'onnxscript')
INPUT = 'image'
# Batch, height and width at which dynamic sizes are traced: no dynamic dimension is 1,
# not even the number of windows of 7 in the last stage, and no two are equal.
TRACED_SIZE = (2, 288, 320)
# Smallest tensor, in numbers, that is stored in half precision. Scales and shifts of
# channels are smaller.
MIN_HALVED = 4096


class ExportForm(nn.Module):
    """A segmentor's prediction as one module: from images to logits or classes.

    It shares the segmentor's modules. Use :func:`prepare` to make one.

    Args:
        segmentor: in evaluation mode.
        output: one of ``OUTPUTS``.
        embed_preprocessing: whether images are uint8, RGB, channels last, and are
            normalized inside as by the segmentor's data preprocessor.
    """

    def __init__(
        self, segmentor: EncoderDecoder, *, output: str, embed_preprocessing: bool
    ) -> None:
        super().__init__()
        self.backbone = segmentor.backbone
        self.neck = segmentor.neck if segmentor.with_neck else nn.Identity()
        self.decode_head = segmentor.decode_head
        self.output = output
        self.embed_preprocessing = embed_preprocessing
        if embed_preprocessing:
            preprocessor = segmentor.data_preprocessor
            self.register_buffer('mean', preprocessor.mean.clone(), persistent=False)
            self.register_buffer('std', preprocessor.std.clone(), persistent=False)
            # mmsegmentation reads BGR; a model without conversion is trained on that.
            self.reverse_channels = not converts_channels(preprocessor)

    def forward(self, image: Tensor) -> Tensor:
        """Segment images.

        Args:
            image: (B, 3, H, W), normalized; with ``embed_preprocessing`` (B, H, W, 3),
                uint8, RGB.

        Returns:
            Logits (B, classes, H, W), or classes (B, H, W), int64.
        """
        if self.embed_preprocessing:
            image = image.permute(0, 3, 1, 2).to(self.mean.dtype)
            if self.reverse_channels:
                image = image.flip(1)
            image = (image - self.mean) / self.std
        head = self.decode_head
        logits = F.interpolate(
            head(self.neck(self.backbone(image))),
            image.shape[2:],
            mode='bilinear',
            align_corners=head.align_corners,
        )
        return logits if self.output == 'logits' else classify(logits, head.threshold)


def classify(logits: Tensor, threshold: float | None) -> Tensor:
    """Return the classes that mmsegmentation predicts, (B, H, W), int64.

    Args:
        logits: (B, classes, H, W); a single channel is the foreground's.
        threshold: minimum probability of the foreground.
    """
    if logits.shape[1] > 1:
        return logits.argmax(1)
    return (logits[:, 0].sigmoid() > threshold).long()


def use_package_heads(cfg: Config) -> None:
    """Replace mmsegmentation's ``UPerHead`` or ``FPNHead`` in a config.

    This package's heads have the same arguments, state dict and results, up to
    rounding, and can be exported with dynamic image sizes.
    """
    head = cfg.model.decode_head
    if isinstance(head, Mapping):
        name = head['type'].removeprefix('mmseg.')
        if name in ('UPerHead', 'FPNHead'):
            head['type'] = f'mmseg_twins.{name}'


def prepare(
    segmentor: EncoderDecoder,
    *,
    output: str = 'logits',
    embed_preprocessing: bool = False,
) -> ExportForm:
    """Make the module to export from a segmentor.

    Args:
        segmentor: an ``EncoderDecoder`` in evaluation mode. It is not changed, and the
            module shares its parameters. Auxiliary heads are left out.
        output: ``'logits'`` (bilinearly upsampled to the image's size, as by
            mmsegmentation's ``predict``) or ``'classes'``.
        embed_preprocessing: whether the module takes uint8 RGB images, (B, H, W, 3).

    Raises:
        SettingError: the segmentor or an argument is not supported.
    """
    if output not in OUTPUTS:
        raise SettingError(f'output={output!r}; give one of {", ".join(OUTPUTS)}')
    head = getattr(segmentor, 'decode_head', None)
    if not isinstance(segmentor, EncoderDecoder) or not isinstance(
        head, BaseDecodeHead
    ):
        raise SettingError(
            f'the model is {type(segmentor).__name__} with {type(head).__name__}; '
            'export supports EncoderDecoder with a decode head that returns logits'
        )
    if segmentor.training:
        raise SettingError('the segmentor is in training mode; call its eval() first')
    if embed_preprocessing and not hasattr(segmentor.data_preprocessor, 'mean'):
        raise SettingError(
            "--embed-preprocessing: the config's model.data_preprocessor has no mean "
            'and std to embed'
        )
    form = ExportForm(segmentor, output=output, embed_preprocessing=embed_preprocessing)
    return form.eval()


def example_image(
    form: ExportForm, batch: int, height: int, width: int, *, seed: int = 0
) -> Tensor:
    """Return random images for a module of :func:`prepare`."""
    generator = torch.Generator().manual_seed(seed)
    if form.embed_preprocessing:
        size = (batch, height, width, 3)
        return torch.randint(256, size, generator=generator, dtype=torch.uint8)
    image = torch.randn(batch, 3, height, width, generator=generator)
    return image.to(form.decode_head.conv_seg.weight.dtype)


def converts_channels(preprocessor: nn.Module) -> bool:
    """Return whether a data preprocessor converts BGR images to RGB."""
    # onedl-mmsegmentation has the attribute under mmengine's name.
    own = getattr(preprocessor, '_channel_conversion', True)
    return getattr(preprocessor, 'channel_conversion', own)


def describe_model(
    cfg: Config,
    segmentor: EncoderDecoder,
    *,
    checkpoint: str,
    output: str,
    embed_preprocessing: bool,
) -> dict[str, str]:
    """Return the metadata of an exported file: strings by name, lists as JSON."""
    preprocessor = segmentor.data_preprocessor
    normalized = hasattr(preprocessor, 'mean')
    order = 'RGB' if converts_channels(preprocessor) else 'BGR'
    if embed_preprocessing:
        image = 'uint8, (N, H, W, 3), RGB, 0 to 255; normalized inside'
    elif normalized:
        image = f'float32, (N, 3, H, W), {order}, (value in 0 to 255 - mean) / std'
    else:
        image = f'float32, (N, 3, H, W), {order}, 0 to 255'
    outputs = {
        'logits': 'float32, (N, classes, H, W)',
        'classes': 'int64, (N, H, W), an index into the list of classes',
    }
    if embed_preprocessing:
        image += f'; {describe_resizing(cfg)}'
    result = {
        'input': image,
        'output': outputs[output],
        'config': getattr(cfg, 'filename', None) or '',
        'checkpoint': checkpoint,
        'mmseg_twins_version': __version__,
        'torch_version': torch.__version__,
    }
    if normalized:
        result['mean'] = json.dumps(preprocessor.mean.flatten().tolist())
        result['std'] = json.dumps(preprocessor.std.flatten().tolist())
    meta = configured_meta(cfg)
    return result | {
        key: json.dumps(meta[key]) for key in ('classes', 'palette') if meta.get(key)
    }


def describe_resizing(cfg: Config) -> str:
    """Return how to resize an image before it is passed to an exported file."""
    steps = cfg.get('test_dataloader', {}).get('dataset', {}).get('pipeline', ())
    settings = [
        ', '.join(f'{key}={value!r}' for key, value in step.items() if key != 'type')
        for step in steps
        if step['type'].rpartition('.')[2] == 'Resize'
    ]
    wanted = f' as in the config, Resize({settings[0]})' if settings else ''
    return f'not resized inside: resize before{wanted}'


def require_deploy() -> None:
    """Check that the extra ``deploy`` is installed.

    Raises:
        SettingError: a package is missing; the message says how to install it.
    """
    missing = [
        name for name in DEPLOY_PACKAGES if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise SettingError(
            f'writing ONNX needs {", ".join(missing)}; run: '
            "pip install 'mmseg_twins[deploy]'"
        )


def trace(
    form: ExportForm,
    *,
    batch: int,
    height: int,
    width: int,
    dynamic: bool,
    for_cpu: bool = False,
) -> ExportedProgram:
    """Trace a module of :func:`prepare`.

    Args:
        height: height of the images in pixels.
        width: width of the images in pixels.
        dynamic: whether batch, height and width are dynamic.
        for_cpu: whether to use operations that are fast in runtimes on a CPU.

    Returns:
        The program, whose input is named ``image``.

    Raises:
        SettingError: the model cannot be traced.
    """
    size, shapes = (batch, height, width), None
    if dynamic:
        size, axes = TRACED_SIZE, range(3) if form.embed_preprocessing else (0, 2, 3)
        shapes = {INPUT: dict.fromkeys(axes, Dim.DYNAMIC)}
    image = example_image(form, *size)
    try:
        with ops.use('graph' if for_cpu else 'portable'):
            program = torch.export.export(form, (image,), dynamic_shapes=shapes)
    except SettingError:
        raise
    except Exception as error:  # PyTorch raises many classes
        raise SettingError(
            f'PyTorch cannot trace this model with {"dynamic" if dynamic else "fixed"} '
            f'sizes: {one_line(error)}'
        ) from error
    # The guards are stricter than the graph: they reject sizes at which a dynamic
    # dimension, such as the number of windows, is 1, although nothing depends on that.
    program._guards_code = []
    for symbol, values in program.range_constraints.items():
        program.range_constraints[symbol] = ValueRanges(2, values.upper)
    return program


def write_program(
    program: ExportedProgram, path: Path, metadata: Mapping[str, str]
) -> None:
    """Write a file for ``torch.export.load``, with the metadata as extra files."""
    # PyTorch's writer aborts the process if the disk is full.
    content = io.BytesIO()
    torch.export.save(program, content, extra_files=dict(metadata))
    path.write_bytes(content.getbuffer())


def write_onnx(
    program: ExportedProgram,
    path: Path,
    metadata: Mapping[str, str],
    *,
    output: str,
    opset: int | None,
    fp16_weights: bool = False,
) -> None:
    """Write a program as one ONNX file.

    Args:
        program: from :func:`trace`.
        metadata: the model's ``metadata_props``.
        opset: version of ONNX's operators; None for the exporter's choice.
        fp16_weights: whether weights are stored in half precision. The graph converts
            them to float32 and computes in float32, so that it runs everywhere.

    Raises:
        SettingError: PyTorch cannot convert the model to ONNX.
    """
    import onnx

    try:
        with quiet():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                external_data=False,
                input_names=[INPUT],
                output_names=[output],
                opset_version=opset,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise SettingError(
            f'PyTorch cannot convert this model to ONNX: {one_line(error)}'
        ) from error
    model = exported.model_proto
    name_axes(model)
    if fp16_weights:
        halve_weights(model.graph)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.save(model, path)


def name_axes(model) -> None:
    """Name the dynamic dimensions of an ONNX model batch, height and width."""
    image, output = (
        one.type.tensor_type.shape.dim
        for one in (model.graph.input[0], model.graph.output[0])
    )
    renamed = {}
    names = iter(('batch', 'height', 'width'))
    for dim in image:
        if dim.dim_param:
            renamed[dim.dim_param] = dim.dim_param = next(names)
    for dim in output:
        if dim.dim_param:
            dim.dim_param = renamed.get(dim.dim_param, dim.dim_param)
    # Intermediate shapes have the old names; runtimes infer them anyway.
    del model.graph.value_info[:]


def halve_weights(graph) -> None:
    """Store the large float32 tensors of an ONNX graph as float16, with casts.

    Tensors that exceed the range of float16 are not changed.
    """
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < MIN_HALVED:
            continue
        with np.errstate(over='ignore'):
            half = numpy_helper.to_array(tensor).astype(np.float16)
        if not np.isfinite(half).all():
            continue
        name, stored = tensor.name, f'{tensor.name}_fp16'
        tensor.CopyFrom(numpy_helper.from_array(half, stored))
        casts.append(helper.make_node('Cast', [stored], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter's warnings and progress."""
    loggers = [logging.getLogger(name) for name in ('torch.onnx', 'onnxscript')]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
