"""Export of segmentors to ONNX and ``torch.export``, with sizes left open or fixed.

ONNX needs the extra ``deploy``.
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

import torch
from mmengine.config import Config
from mmseg.models.necks import FPN
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from ..checkpoints.dataset_meta import configured_meta
from ..models.backbones import PCPVT, SVT
from ..models.decode_heads import FPNHead, UPerHead
from ..version import __version__

OUTPUTS = ('logits', 'classes')
#: What the ONNX exporter needs, all in the extra ``deploy``.
DEPLOY_PACKAGES = ('onnx', 'onnxruntime', 'onnxscript')
INPUT = 'image'
# Every dimension that is to stay a symbol is above 1 at these sizes, in windows of 7
# of the last stage too, and none equals another.
TRACED_BATCH, TRACED_HEIGHT, TRACED_WIDTH = 2, 288, 320


class ExportForm(nn.Module):
    """Image in, logits or classes of its pixels out.

    Computes what the segmentor computes in evaluation, by the segmentor's own modules.
    :func:`prepare` makes one.

    Args:
        segmentor: in evaluation mode.
        output: one of ``OUTPUTS``.
        embed_preprocessing: whether images come as RGB bytes, channels last, and are
            normalized as the segmentor's data preprocessor does.
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
            # Images are read as BGR; a model without conversion is trained on that.
            self.reverse_channels = not preprocessor.channel_conversion

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
    """Classes (B, H, W), int64, as mmsegmentation decides them.

    Args:
        logits: (B, classes, H, W); of a single channel, the foreground's.
        threshold: the foreground's least probability.
    """
    if logits.shape[1] > 1:
        return logits.argmax(1)
    return (logits[:, 0].sigmoid() > threshold).long()


def use_package_heads(cfg: Config) -> None:
    """Replace mmsegmentation's decode heads in a config by those that can be exported.

    They have the same arguments, state dict and results up to rounding.
    """
    head = cfg.model.decode_head
    name = head['type'].removeprefix('mmseg.')
    if name in ('UPerHead', 'FPNHead'):
        head['type'] = f'mmseg_twins.{name}'


def prepare(
    segmentor: EncoderDecoder,
    *,
    output: str = 'logits',
    embed_preprocessing: bool = False,
) -> ExportForm:
    """Make the export form of a segmentor.

    Args:
        segmentor: an ``EncoderDecoder`` with a backbone and a head of this package, with
            or without a neck ``FPN``, in evaluation mode. It stays as it is and shares
            its parameters. Auxiliary heads are left out.
        output: ``'logits'`` (of mmsegmentation's ``predict``: bilinearly upsampled to
            the image) or ``'classes'``.
        embed_preprocessing: whether the form takes uint8 RGB images, (B, H, W, 3).

    Returns:
        The form, in evaluation mode.

    Raises:
        ValueError: the segmentor or an argument is something else; says what.
    """
    if output not in OUTPUTS:
        raise ValueError(f'output={output!r}; give one of {", ".join(OUTPUTS)}')
    if not isinstance(segmentor, EncoderDecoder):
        raise ValueError(
            f'the model of the config is {type(segmentor).__name__}; export supports '
            'EncoderDecoder'
        )
    if segmentor.training:
        raise ValueError('the segmentor is in training mode; call its eval() first')
    neck = segmentor.neck if segmentor.with_neck else None
    if neck is not None and not (
        isinstance(neck, FPN) and neck.num_outs == len(neck.lateral_convs)
    ):
        raise ValueError(
            f"the neck is {type(neck).__name__}; export supports none and 'FPN' with "
            'as many outputs as inputs'
        )
    for part, kinds in (
        ('backbone', (PCPVT, SVT)),
        ('decode_head', (UPerHead, FPNHead)),
    ):
        module = getattr(segmentor, part)
        if not isinstance(module, kinds):
            names = ' and '.join(f'mmseg_twins.{kind.__name__}' for kind in kinds)
            raise ValueError(
                f'the {part} is {type(module).__name__} of {type(module).__module__}; '
                f'export supports {names}'
            )
    if embed_preprocessing and not hasattr(segmentor.data_preprocessor, 'mean'):
        raise ValueError(
            "--embed-preprocessing: the config's model.data_preprocessor has no mean "
            'and std to embed'
        )
    form = ExportForm(segmentor, output=output, embed_preprocessing=embed_preprocessing)
    return form.eval()


def example_image(
    form: ExportForm, batch: int, height: int, width: int, *, seed: int = 0
) -> Tensor:
    """Random images of the kind that a form takes."""
    generator = torch.Generator().manual_seed(seed)
    if form.embed_preprocessing:
        size = (batch, height, width, 3)
        return torch.randint(256, size, generator=generator, dtype=torch.uint8)
    image = torch.randn(batch, 3, height, width, generator=generator)
    return image.to(form.decode_head.conv_seg.weight.dtype)


def describe_model(
    cfg: Config,
    segmentor: EncoderDecoder,
    *,
    checkpoint: str,
    output: str,
    embed_preprocessing: bool,
) -> dict[str, str]:
    """What someone who has only the exported file needs to know.

    Returns:
        Texts by name, for the file's metadata; lists as JSON.
    """
    preprocessor = segmentor.data_preprocessor
    normalized = hasattr(preprocessor, 'mean')
    order = 'RGB' if getattr(preprocessor, 'channel_conversion', True) else 'BGR'
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


def require_deploy() -> None:
    """Checks that the extra ``deploy`` is installed.

    Raises:
        ValueError: a package is missing; says how to install it.
    """
    missing = [
        name for name in DEPLOY_PACKAGES if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ValueError(
            f'writing ONNX needs {", ".join(missing)}, which the extra `deploy` '
            "brings: pip install 'mmseg_twins[deploy]'"
        )


def trace(
    form: ExportForm, *, batch: int, height: int, width: int, dynamic: bool
) -> ExportedProgram:
    """Records a form's computation.

    Args:
        form: of :func:`.segmentor.prepare`.
        batch: images at once.
        height: of the image, in pixels.
        width: of the image, in pixels.
        dynamic: whether batch, height and width stay open; what is given of them does
            not matter then.

    Returns:
        The program, whose input is named ``image``.
    """
    if not dynamic:
        return torch.export.export(form, (example_image(form, batch, height, width),))
    image = example_image(form, TRACED_BATCH, TRACED_HEIGHT, TRACED_WIDTH)
    axes = range(3) if form.embed_preprocessing else (0, 2, 3)
    return torch.export.export(
        form, (image,), dynamic_shapes={INPUT: dict.fromkeys(axes, Dim.DYNAMIC)}
    )


def write_program(
    program: ExportedProgram, path: Path, metadata: Mapping[str, str]
) -> None:
    """Writes what ``torch.export.load`` reads, the metadata as extra files."""
    with path.open('wb') as file:
        torch.export.save(program, file, extra_files=dict(metadata))


def write_onnx(
    program: ExportedProgram,
    path: Path,
    metadata: Mapping[str, str],
    *,
    output: str,
    opset: int | None,
) -> None:
    """Writes a program as one ONNX file.

    Args:
        program: of :func:`trace`.
        path: the file.
        metadata: becomes the model's ``metadata_props``.
        output: the output's name.
        opset: version of ONNX's operators; None for the exporter's choice.
    """
    import onnx

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
    model = exported.model_proto
    name_axes(model, embedded=program_takes_bytes(program))
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.save(model, path)


def program_takes_bytes(program: ExportedProgram) -> bool:
    """Whether a program's image is uint8 and channels last."""
    (image,) = program.example_inputs[0]
    return image.dtype == torch.uint8


def name_axes(model, *, embedded: bool) -> None:
    """Gives open dimensions names that say what they are.

    Args:
        model: an ONNX model.
        embedded: whether its image is channels last.
    """
    image, output = model.graph.input[0], model.graph.output[0]
    names = ('batch', 'height', 'width')
    renamed = {}
    for axis, name in zip(range(3) if embedded else (0, 2, 3), names, strict=True):
        dim = image.type.tensor_type.shape.dim[axis]
        if dim.dim_param:
            renamed[dim.dim_param] = dim.dim_param = name
    for dim in output.type.tensor_type.shape.dim:
        if dim.dim_param:
            dim.dim_param = renamed.get(dim.dim_param, dim.dim_param)
    # Shapes between are in terms of the old names; runtimes infer them anyway.
    del model.graph.value_info[:]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the exporter's remarks on its own affairs from the user."""
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
