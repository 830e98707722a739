"""From a checkpoint of any Twins layout to a verified one of another.

:func:`convert_checkpoint` works on files: it fetches, reads, converts and writes.
:func:`convert_state_dict` works on tensors: it detects, renames and verifies.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..version import __version__
from .dataset_meta import stored_meta
from .detection import Detected, detect, strip_data_parallel
from .downloading import fetch, is_url
from .layouts import Layout, find_layout
from .models import VARIANTS, Heads, build_backbone, build_segmentor
from .patterns import Renamed, Renaming
from .reading import Source, check_entries, read_source, sha256
from .report import Report
from .verification import (
    check_claims,
    check_dense,
    check_forward,
    check_names_and_shapes,
    check_values,
    missing_by_right,
)
from .writing import SUFFIXES, check_writable, write_checkpoint

TARGETS = {'mmseg': 'mmsegmentation', 'official': 'official'}


def convert_state_dict(
    state_dict: Mapping[str, Tensor],
    *,
    to: str = 'mmseg',
    arch: str | None = None,
    backbone_only: bool = False,
) -> tuple[dict[str, Tensor], Report]:
    """Convert a Twins state dict, and verify the result.

    What the tensors are is found out from their names and shapes: an official (or
    timm) classifier, an official or SSSegmentation segmentor, or a backbone or
    segmentor of mmsegmentation. A backbone or classifier becomes a bare backbone, a
    segmentor a whole segmentor.

    Values are never cast. Tensors that are not merged or split share memory with
    those given. On the meta device there are no values, and only names and shapes
    are verified.

    Args:
        state_dict: tensors by name; a ``module.`` in front is taken away.
        to: ``'mmseg'``, or ``'official'`` for the names that timm reads too.
        arch: the variant that it must be, such as ``'svt-s'``; None takes any.
        backbone_only: whether to leave a segmentor's heads and give a bare backbone.

    Returns:
        The converted state dict, and what was found and done.

    Raises:
        CheckpointError: it is no Twins, not the one of ``arch``, has a tensor too
            many, too few, of a wrong shape or not finite, or the model that it makes
            gives outputs that are not finite.
        ValueError: ``to`` or ``arch`` is none of those that exist.

    Example:
        >>> import torch
        >>> from mmseg_twins.checkpoints import convert_state_dict
        >>> state = torch.load('alt_gvt_small.pth', weights_only=True)
        >>> converted, report = convert_state_dict(state)
        >>> report.variant
        'svt-s'
    """
    for name, value, allowed in (('to', to, TARGETS), ('arch', arch, VARIANTS)):
        if value not in allowed and value is not None:
            raise ValueError(f'{name}={value!r}; give one of {", ".join(allowed)}')
    state = strip_data_parallel(check_tensors(state_dict))
    detected = detect({name: tensor.shape for name, tensor in state.items()})
    if arch not in (None, detected.variant):
        raise CheckpointError(
            f'this is {detected.variant} ({detected.title}), not {arch}'
        )
    layout = detected.layout
    if backbone_only and layout.is_segmentor:
        detected = without_heads(detected, state)
    check_dense(state)
    check_claims(state)
    renaming = Renaming((*layout.backbone, *layout.heads), detected.family)
    is_segmentor = layout.is_segmentor and not backbone_only
    heads = Heads.of(target_shapes(state, renaming)) if is_segmentor else None
    model = (
        build_segmentor(detected.variant, heads)
        if is_segmentor
        else build_backbone(detected.variant)
    )

    kept = {name: state[name] for name in state if name not in detected.dropped}
    prefix = 'backbone.' if layout.is_segmentor and not is_segmentor else ''
    wanted = renaming.backwards(
        {prefix + name: tensor for name, tensor in model.state_dict().items()}
    ).state
    absent = missing_by_right(kept, wanted, detected)
    check_names_and_shapes(
        {name: tensor.shape for name, tensor in kept.items()},
        {name: wanted[name].shape for name in wanted if name not in absent},
        detected,
        renaming,
    )
    check_kinds(kept, wanted)

    converted = without_prefix(renaming.forwards(kept), prefix)
    verified = ['names', 'shapes']
    if not all(tensor.is_meta for tensor in converted.state.values()):
        check_values(kept)
        check_forward(model, converted.state)
        verified += ['finite values', 'a forward pass']

    target = find_layout(TARGETS[to], is_segmentor)
    if layout.project == target.project:
        result = without_prefix(Renamed(kept, {name: (name,) for name in kept}), prefix)
    elif target.project == 'official':
        result = back_to(target, converted, detected.family)
        verified.append('the way back')
    else:
        result = converted
    missing = [name for name in model.state_dict() if name not in converted.state]
    return result.state, Report(
        found=detected.title,
        variant=detected.variant,
        written=f'{target.project} {"segmentor" if is_segmentor else "backbone"}',
        heads=heads,
        dropped=detected.dropped,
        missing=tuple(missing),
        verified=tuple(verified),
        **count_changes(result.origins),
    )


def check_tensors(state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The state dict, if that is what it is.

    Raises:
        CheckpointError: it is empty, or holds something that is no tensor.
    """
    if not state_dict:
        raise CheckpointError('this is no Twins checkpoint: it holds no tensors')
    check_entries(state_dict)
    # Not the tensors' own method, which an attribute of theirs can hide.
    return {name: Tensor.detach(tensor) for name, tensor in state_dict.items()}


def without_heads(detected: Detected, state: Mapping[str, Tensor]) -> Detected:
    """What was detected, with the heads on the list of what is dropped."""
    renaming = Renaming(detected.layout.heads, detected.family)
    heads = tuple(name for name in state if renaming.target(name) is not None)
    return dataclasses.replace(detected, dropped=detected.dropped + heads)


def target_shapes(
    state: Mapping[str, Tensor], renaming: Renaming
) -> dict[str, torch.Size]:
    """Return shapes by the target's names, without those of merged tensors."""
    targets = {name: renaming.target(name) for name in state}
    return {
        target: state[name].shape
        for name, target in targets.items()
        if target is not None
    }


def check_kinds(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Check that weights are floating-point numbers and counters are whole.

    Raises:
        CheckpointError: one is not; says which.
    """
    for name, tensor in found.items():
        if tensor.is_floating_point() != wanted[name].is_floating_point():
            raise CheckpointError(
                f'{name!r} is of {tensor.dtype}, expected {wanted[name].dtype}'
            )


def without_prefix(renamed: Renamed, prefix: str) -> Renamed:
    """Take a prefix away that all names have."""
    return Renamed(
        {name.removeprefix(prefix): value for name, value in renamed.state.items()},
        {name.removeprefix(prefix): value for name, value in renamed.origins.items()},
    )


def back_to(target: Layout, converted: Renamed, family: str) -> Renamed:
    """Lead a converted state dict to another layout, and check the way back.

    Raises:
        CheckpointError: converting the result gives something else.
    """
    renaming = Renaming((*target.backbone, *target.heads), family)
    result = renaming.backwards(converted.state)
    again = renaming.forwards(result.state).state
    for name, tensor in converted.state.items():
        if not tensor.is_meta and not torch.equal(again[name], tensor):
            raise CheckpointError(f'{name!r} does not survive the way there and back')
    return Renamed(
        result.state,
        {
            name: tuple(first for last in names for first in converted.origins[last])
            for name, names in result.origins.items()
        },
    )


def count_changes(origins: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
    """Count what happened to tensors.

    Args:
        origins: for each name of the result, the source's names.
    """
    uses = Counter(name for names in origins.values() for name in names)
    counts = dict(unchanged=0, renamed=0, merged=0, split=0)
    for name, names in origins.items():
        if len(names) > 1:
            counts['merged'] += len(names)
        elif uses[names[0]] > 1:
            counts['split'] += 1
        elif names[0] == name:
            counts['unchanged'] += 1
        else:
            counts['renamed'] += 1
    return counts


def convert_checkpoint(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    to: str = 'mmseg',
    arch: str | None = None,
    use_ema: bool = False,
    backbone_only: bool = False,
    force: bool = False,
    progress: bool = False,
) -> Report:
    """Convert a Twins checkpoint; write nothing unless all checks hold.

    Args:
        source: a path, or a URL, which is downloaded to PyTorch's cache: a file of
            PyTorch's or in the safetensors format. It is read without letting
            anything in it run.
        target: the file to write, ending in ``.pth`` or ``.safetensors``. It gets
            ``meta`` (see :func:`describe`) and ``state_dict``, and is there complete
            or not at all.
        to: see :func:`~.conversion.convert_state_dict`, as for ``arch`` and
            ``backbone_only``.
        arch: the variant that it must be.
        use_ema: whether to take the averaged weights of ``model_ema``.
        backbone_only: whether to leave a segmentor's heads.
        force: whether to replace ``target`` if it exists.
        progress: whether to show the progress of a download on stderr.

    Returns:
        What was found and done; ``print`` shows it as a table.

    Raises:
        CheckpointError: the source is no checkpoint of Twins that can be verified, or
            is the target itself.
        OSError: the source cannot be read, or the target cannot be written.
        ValueError: an argument has a value that is not allowed.

    Example:
        >>> from mmseg_twins.checkpoints import convert_checkpoint
        >>> print(convert_checkpoint('alt_gvt_small.pth', 'svt-s.pth'))
    """
    source, target = os.fspath(source), Path(target)
    check_not_the_same(source, target)
    check_writable(target, force=force, suffixes=SUFFIXES)
    path = fetch(source, progress=progress) if is_url(source) else Path(source)
    check_not_the_same(path, target)
    loaded = read_source(path, use_ema=use_ema)
    digest = sha256(path)
    try:
        state, report = convert_state_dict(
            loaded.state, to=to, arch=arch, backbone_only=backbone_only
        )
    except CheckpointError as error:
        raise CheckpointError(f'{path}: {error}') from None
    except RuntimeError as error:
        if 'allocate memory' not in str(error):
            raise
        raise MemoryError(str(error)) from None
    if not report.values_verified:
        raise CheckpointError(f'{path} has shapes but no values (meta device)')
    report = dataclasses.replace(
        report, source=source, source_sha256=digest, target=str(target)
    )
    write_checkpoint(target, state, describe(report, loaded), force=force)
    return report


def check_not_the_same(source: str | Path, target: Path) -> None:
    """Check that the source would not be replaced by what is made from it.

    Raises:
        CheckpointError: it would.
    """
    if is_url(str(source)) or not Path(source).exists() or not target.exists():
        return
    if os.path.samefile(source, target):
        raise CheckpointError(
            f'{target} is the checkpoint that is read; give another file to write'
        )


def describe(report: Report, source: Source) -> dict:
    """What a written file says about itself, in plain Python values.

    Args:
        report: what was found and done.
        source: what was read; the classes of a segmentor are taken over from it.

    Returns:
        ``source`` (name), ``source_sha256``, ``layout``, ``variant``, ``tool``,
        ``wrapper``, ``dropped`` and ``missing`` (names), ``left_out`` (the file's
        other entries, such as the optimizer) and, if the source has them,
        ``dataset_meta`` with ``classes`` and ``palette`` as mmengine writes them.
    """
    meta: dict[str, Any] = {
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
