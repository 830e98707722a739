"""Convert a checkpoint of any Twins layout to a verified one of another.

:func:`convert_checkpoint` works on files: it reads, converts and writes.
:func:`convert_state_dict` works on tensors: it detects, renames and verifies.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor

from ..errors import CheckpointError
from ..state_dicts import strip_data_parallel
from ..version import __version__
from .dataset_meta import stored_meta
from .detection import detect
from .layouts import LAYOUTS
from .models import VARIANTS
from .patterns import Renaming
from .reading import Source, read_source, sha256
from .report import Report
from .verification import verify
from .writing import SUFFIXES, check_writable, write_checkpoint

TARGETS = {'mmseg': 'mmsegmentation', 'official': 'official'}


def convert_checkpoint(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    to: str = 'mmseg',
    variant: str | None = None,
    use_ema: bool = False,
    backbone_only: bool = False,
    force: bool = False,
    origin: str | None = None,
) -> Report:
    """Convert a Twins checkpoint; write nothing unless all checks pass.

    Args:
        source: a file in PyTorch's or the safetensors format. Nothing in it can run.
            :func:`.locating.locate` fetches those that are elsewhere.
        target: the file to write, ending in ``.pth`` or ``.safetensors``, with
            ``state_dict`` and ``meta`` (see :func:`describe`). It is written
            atomically.
        to: ``'mmseg'``, or ``'official'`` for the names that timm reads too.
        variant: the expected variant, such as ``'svt-s'``; None for any.
        use_ema: whether to take the averaged weights of ``model_ema``.
        backbone_only: whether to drop a segmentor's heads.
        force: whether to replace ``target`` if it exists.
        origin: where the source comes from, for the report; its path by default.

    Returns:
        What was found and done; ``print`` shows it as a table.

    Raises:
        CheckpointError: the source is not a Twins checkpoint, cannot be verified, or
            is the target itself.
        OSError: the source cannot be read, or the target cannot be written.
        ValueError: an argument has a value that is not allowed.

    Example:
        >>> from mmseg_twins.checkpoints.conversion import convert_checkpoint
        >>> print(convert_checkpoint('alt_gvt_small.pth', 'svt-s.pth'))
    """
    path, target = Path(source), Path(target)
    check_writable(target, force=force, suffixes=SUFFIXES)
    if path.exists() and target.exists() and path.samefile(target):
        raise CheckpointError(
            f'{target} is the source itself; give another file to write'
        )
    read = read_source(path, use_ema=use_ema)
    try:
        state, report = convert_state_dict(
            read.state, to=to, variant=variant, backbone_only=backbone_only
        )
    except CheckpointError as error:
        raise CheckpointError(f'{path}: {error}') from None
    report = dataclasses.replace(
        report,
        source=origin or str(path),
        source_sha256=sha256(path),
        target=str(target),
    )
    write_checkpoint(target, state, describe(report, read), force=force)
    return report


def convert_state_dict(
    state_dict: Mapping[str, Tensor],
    *,
    to: str = 'mmseg',
    variant: str | None = None,
    backbone_only: bool = False,
) -> tuple[dict[str, Tensor], Report]:
    """Convert a Twins state dict, and verify the result.

    Its layout and variant are detected from names and shapes: an official (or timm)
    classifier, an official or SSSegmentation segmentor, or a backbone or segmentor of
    mmsegmentation. A backbone or classifier becomes a bare backbone, a segmentor a
    whole segmentor.

    Values are never cast. Tensors that are neither merged nor split share memory with
    the input. Of tensors on the meta device, only names and shapes are verified.

    Args:
        state_dict: tensors by name; a prefix ``module.`` is removed.
        to: ``'mmseg'``, or ``'official'`` for the names that timm reads too.
        variant: the expected variant, such as ``'svt-s'``; None for any.
        backbone_only: whether to drop a segmentor's heads.

    Returns:
        The converted state dict, and what was found and done.

    Raises:
        CheckpointError: it is not a Twins model or not of the ``variant``, a tensor is
            missing, unexpected, mismatched or not finite, or the outputs of its model
            are not finite.
        ValueError: ``to`` or ``variant`` has a value that is not allowed.

    Example:
        >>> import torch
        >>> from mmseg_twins.checkpoints.conversion import convert_state_dict
        >>> state = torch.load('alt_gvt_small.pth', weights_only=True)
        >>> converted, report = convert_state_dict(state)
        >>> report.variant
        'svt-s'
    """
    choices = (('to', to, TARGETS), ('variant', variant, VARIANTS))
    for name, value, allowed in choices:
        if value not in allowed and value is not None:
            raise ValueError(f'{name}={value!r}; give one of {", ".join(allowed)}')
    state = strip_data_parallel(state_dict)
    detected = detect(state, variant=variant, backbone_only=backbone_only)
    converted = without_prefix(
        detected.renaming.forwards(detected.kept), detected.prefix
    )
    verified = verify(detected.model, converted, detected.kept)
    wanted = detected.model.state_dict()
    if to == 'mmseg':
        result = converted
    elif detected.layout.project == 'official':
        result = without_prefix(detected.kept, detected.prefix)
    else:
        result = to_official(converted, detected.variant)
    return result, Report(
        found=detected.title,
        variant=detected.variant,
        written=f'{TARGETS[to]} {"segmentor" if detected.heads else "backbone"}',
        heads=detected.heads,
        **count_changes(detected.kept.keys(), result.keys()),
        dropped=detected.dropped,
        missing=tuple(name for name in wanted if name not in converted),
        verified=('names', 'shapes', *verified),
    )


def without_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Remove a prefix that all names have."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def to_official(state: Mapping[str, Tensor], variant: str) -> dict[str, Tensor]:
    """Rename mmsegmentation's tensors to the official code's."""
    is_segmentor = any(name.startswith('backbone.') for name in state)
    layout = next(
        layout
        for layout in LAYOUTS
        if (layout.project, layout.is_segmentor) == ('official', is_segmentor)
    )
    family = variant.split('-')[0]
    return Renaming((*layout.backbone, *layout.heads), family).backwards(state)


def count_changes(before: Collection[str], after: Collection[str]) -> dict[str, int]:
    """Count unchanged, renamed, merged and split tensors; merges are of two tensors.

    Args:
        before: the source's names.
        after: the result's names.
    """
    merged = 2 * max(len(before) - len(after), 0)
    split = 2 * max(len(after) - len(before), 0)
    unchanged = len(set(before) & set(after))
    renamed = len(after) - unchanged - merged // 2 - split
    return dict(unchanged=unchanged, renamed=renamed, merged=merged, split=split)


def describe(report: Report, source: Source) -> dict:
    """Return the ``meta`` of a written file, in plain Python values.

    Args:
        report: what was found and done.
        source: what was read; a segmentor keeps its classes.

    Returns:
        ``source`` (name), ``source_sha256``, ``layout``, ``variant``, ``tool``,
        ``wrapper``, ``dropped`` and ``missing`` (names), ``left_out`` (the file's
        other entries, such as the optimizer) and, if the source has them,
        ``dataset_meta`` with ``classes`` and ``palette`` as mmengine writes them.
    """
    meta: dict[str, object] = {
        'source': report.source,
        'source_sha256': report.source_sha256,
        'layout': report.found,
        'variant': report.variant,
        'tool': f'mmseg_twins {__version__}',
        'wrapper': source.wrapper,
        'dropped': list(report.dropped),
        'missing': list(report.missing),
        'left_out': list(source.others),
    }
    dataset = stored_meta(source.meta)
    if dataset and report.heads is not None:
        meta['dataset_meta'] = dataset
    return meta
