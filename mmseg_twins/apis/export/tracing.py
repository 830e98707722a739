"""From an export form to a program of ``torch.export`` and to an ONNX file."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from .segmentor import ExportForm, example_image

#: What the ONNX exporter needs, all in the extra ``deploy``.
DEPLOY_PACKAGES = ('onnx', 'onnxruntime', 'onnxscript')
INPUT = 'image'
# Every dimension that is to stay a symbol is above 1 at these sizes, in windows of 7
# of the last stage too, and none equals another.
TRACED_BATCH, TRACED_HEIGHT, TRACED_WIDTH = 2, 288, 320


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
