"""From a Twins state dict of any layout to a verified one of another."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from .detection import Detected, detect, strip_data_parallel
from .errors import ConversionError
from .layouts import Layout, find_layout
from .models import VARIANTS, Heads, build_backbone, build_segmentor
from .patterns import Renamed, Renaming
from .report import Report
from .verification import (
    check_claims,
    check_dense,
    check_entries,
    check_forward,
    check_names_and_shapes,
    check_values,
    missing_by_right,
)

TARGETS = {'mmseg': 'mmsegmentation', 'official': 'official'}


def convert_state_dict(
    state_dict: Mapping[str, Tensor],
    *,
    to: str = 'mmseg',
    arch: str | None = None,
    backbone_only: bool = False,
) -> tuple[dict[str, Tensor], Report]:
    """Converts a Twins state dict, and verifies the result.

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
        ConversionError: it is no Twins, not the one of ``arch``, has a tensor too
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
        raise ConversionError(
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
        ConversionError: it is empty, or holds something that is no tensor.
    """
    if not state_dict:
        raise ConversionError('this is no Twins checkpoint: it holds no tensors')
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
    """Shapes by the target's names; those of merged tensors are left out."""
    shapes = {renaming.target(name): tensor.shape for name, tensor in state.items()}
    shapes.pop(None, None)
    return shapes


def check_kinds(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Checks that weights are floating-point numbers and counters are whole.

    Raises:
        ConversionError: one is not; says which.
    """
    for name, tensor in found.items():
        if tensor.is_floating_point() != wanted[name].is_floating_point():
            raise ConversionError(
                f'{name!r} is of {tensor.dtype}, expected {wanted[name].dtype}'
            )


def without_prefix(renamed: Renamed, prefix: str) -> Renamed:
    """Takes a prefix away that all names have."""
    return Renamed(
        {name.removeprefix(prefix): value for name, value in renamed.state.items()},
        {name.removeprefix(prefix): value for name, value in renamed.origins.items()},
    )


def back_to(target: Layout, converted: Renamed, family: str) -> Renamed:
    """Leads a converted state dict to another layout, and checks the way back.

    Raises:
        ConversionError: converting the result gives something else.
    """
    renaming = Renaming((*target.backbone, *target.heads), family)
    result = renaming.backwards(converted.state)
    again = renaming.forwards(result.state).state
    for name, tensor in converted.state.items():
        if not tensor.is_meta and not torch.equal(again[name], tensor):
            raise ConversionError(f'{name!r} does not survive the way there and back')
    return Renamed(
        result.state,
        {
            name: tuple(first for last in names for first in converted.origins[last])
            for name, names in result.origins.items()
        },
    )


def count_changes(origins: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
    """Counts what happened to tensors.

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
