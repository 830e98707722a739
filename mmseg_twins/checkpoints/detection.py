"""Detect the layout, variant and heads of a state dict.

Names and shapes decide, by majority, so that a checkpoint with a missing or unexpected
tensor is still recognized, and the error can name that tensor.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from mmengine.model import BaseModule
from torch import Size, Tensor

from ..errors import CheckpointError
from ..state_dicts import compare
from .layouts import LAYOUTS, Layout
from .models import VARIANTS, Heads, build_model
from .patterns import Renaming, compile_template

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Detected:
    """The result of :func:`detect`.

    Attributes:
        layout: names of tensors, as a project writes them.
        variant: such as ``'svt-s'``.
        title: such as ``'official classifier'``.
        heads: a segmentor's; None for a backbone.
        model: a model that the tensors fit, on the meta device.
        renaming: from the state dict's names to mmsegmentation's.
        prefix: of the renamed tensors, to be removed.
        kept: the tensors that the model has.
        dropped: names of the other tensors.
    """

    layout: Layout
    variant: str
    title: str
    heads: Heads | None
    model: BaseModule
    renaming: Renaming
    prefix: str
    kept: Mapping[str, Tensor]
    dropped: tuple[str, ...]


def detect(
    state: Mapping[str, Tensor], *, variant: str | None, backbone_only: bool
) -> Detected:
    """Detect what a state dict is, and check that it is complete.

    Args:
        state: tensors by name, without ``module.``.
        variant: the expected variant; None for any.
        backbone_only: whether to drop a segmentor's heads.

    Raises:
        CheckpointError: it is not a Twins model or of another variant, or a tensor is
            missing, unexpected, or of another shape or type than the model's.
    """
    layout, family = detect_layout(state)
    found = detect_variant(state, layout, family)
    kept, dropped = split_state(state, layout, family, backbone_only)
    is_classifier = not layout.prefix and any('head.' in name for name in dropped)
    kind = 'segmentor' if layout.heads else 'backbone'
    if is_classifier and not any(name.startswith('norm_list.') for name in state):
        kind = 'classifier'
    title = f'{layout.project} {kind}'
    if variant not in (None, found):
        raise CheckpointError(f'the checkpoint is {found} ({title}), not {variant}')
    renaming = Renaming((*layout.backbone, *layout.heads), family)
    heads = None
    if layout.heads and not backbone_only:
        targets = {renaming.target(name): kept[name].shape for name in kept}
        heads = Heads.of({name: targets[name] for name in targets if name})
    model = build_model(found, heads)
    prefix = 'backbone.' if layout.heads and backbone_only else ''
    wanted = renaming.backwards(
        {prefix + name: tensor for name, tensor in model.state_dict().items()}
    )
    differences = compare(
        wanted, kept, ignored=allowed_missing(layout, family, wanted, kept)
    )
    if differences:
        raise CheckpointError(
            f'the checkpoint is closest to the {title} of {found}, but {differences}'
        )
    check_types(kept, wanted)
    return Detected(
        layout, found, title, heads, model, renaming, prefix, kept, tuple(dropped)
    )


def detect_layout(names: Iterable[str]) -> tuple[Layout, str]:
    """Return the layout and family whose backbone has most of the names.

    Raises:
        CheckpointError: no backbone has most of them.
    """
    names = list(names)
    matches = {}
    for layout, family in itertools.product(LAYOUTS, ('pcpvt', 'svt')):
        targets = map(Renaming(layout.backbone, family).target, names)
        matches[layout, family] = sum(target is not None for target in targets)
    layout, family = max(matches, key=matches.__getitem__)
    matched = matches[layout, family]
    if 2 * matched <= sum(name.startswith(layout.prefix) for name in names):
        examples = ', '.join(map(repr, names[:3])) or 'nothing'
        raise CheckpointError(
            f'this is not a Twins checkpoint: {matched} of its {len(names)} tensors '
            f'have names of a Twins backbone (the first tensors: {examples})'
        )
    return layout, family


def detect_variant(state: Mapping[str, Tensor], layout: Layout, family: str) -> str:
    """Return the variant whose backbone differs in the fewest tensors."""
    renaming = Renaming(layout.backbone, family)
    found = {
        name: tensor.shape for name, tensor in state.items() if renaming.target(name)
    }

    def count_differences(variant: str) -> int:
        wanted = backbone_shapes(layout, variant)
        return sum(found.get(name) != wanted.get(name) for name in found | wanted)

    variants = [variant for variant in VARIANTS if variant.startswith(family)]
    return min(variants, key=count_differences)


@cache
def backbone_shapes(layout: Layout, variant: str) -> dict[str, Size]:
    """Return the shapes of a variant's backbone by a layout's names."""
    prefix = 'backbone.' if layout.heads else ''
    tensors = build_model(variant).state_dict()
    state = Renaming(layout.backbone, variant.split('-')[0]).backwards(
        {prefix + name: tensor for name, tensor in tensors.items()}
    )
    return {name: tensor.shape for name, tensor in state.items()}


def split_state(
    state: Mapping[str, Tensor], layout: Layout, family: str, backbone_only: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors that are converted, and the names of those that are not."""
    patterns = [compile_template(template, family) for template in layout.may_drop]
    dropped = [
        name
        for name in state
        if any(pattern.fullmatch(name) for pattern in patterns)
        or (backbone_only and not name.startswith(layout.prefix))
    ]
    without = set(dropped)
    return {name: state[name] for name in state if name not in without}, dropped


def allowed_missing(
    layout: Layout, family: str, wanted: Iterable[str], found: Mapping[str, Tensor]
) -> list[str]:
    """Return the names that may all be missing; none if one of them is there."""
    patterns = [compile_template(name, family) for name in layout.may_be_missing]
    names = [name for name in wanted if any(p.fullmatch(name) for p in patterns)]
    return [] if any(name in found for name in names) else names


def check_types(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Check that weights are dense floating-point tensors, and counters integers.

    Raises:
        CheckpointError: a tensor is not; the message names it.
    """
    for name, tensor in found.items():
        allowed = FLOATS if wanted[name].is_floating_point() else (torch.int64,)
        if tensor.layout != torch.strided or tensor.dtype not in allowed:
            raise CheckpointError(
                f'{name!r} has dtype {tensor.dtype} and layout {tensor.layout}; '
                f'expected a dense tensor of {" or ".join(map(str, allowed))}'
            )
