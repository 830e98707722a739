"""What a state dict is: its project's layout, its variant and its heads.

These follow from names and shapes alone, and by majority, so that a checkpoint with a
tensor too many or too few is still recognized, and can be described as such.
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
    """What a state dict is.

    Attributes:
        layout: its project's layout.
        variant: such as ``'svt-s'``.
        title: such as ``'official classifier'``.
        heads: of a segmentor; None for a backbone.
        model: the model that it is for, on the meta device.
        renaming: from its names to mmsegmentation's.
        prefix: what precedes mmsegmentation's names in the model's, to be removed.
        kept: its tensors that have a place in the model.
        dropped: the names of the others.
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
    """Detect what a state dict is, and check that it is that completely.

    Args:
        state: tensors by name, without ``module.``.
        variant: the variant that it must be; None for any.
        backbone_only: whether to drop a segmentor's heads.

    Raises:
        CheckpointError: it is no Twins, of another variant, or has a tensor too many,
            too few, or of another shape or type than the model.
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
        raise CheckpointError(f'this is {found} ({title}), not {variant}')
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
            f'this is closest to the {title} of {found}, but {differences}'
        )
    check_types(kept, wanted)
    return Detected(
        layout, found, title, heads, model, renaming, prefix, kept, tuple(dropped)
    )


def detect_layout(names: Iterable[str]) -> tuple[Layout, str]:
    """Return the layout and family whose backbone has most of the names.

    Raises:
        CheckpointError: there is none that has most of them.
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
            f'this is no Twins checkpoint: {matched} of its {len(names)} tensors have '
            f'names of a Twins backbone (it begins with {examples})'
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
    """Return the names that may be missing together, unless one of them is found."""
    patterns = [compile_template(name, family) for name in layout.may_be_missing]
    names = [name for name in wanted if any(p.fullmatch(name) for p in patterns)]
    return [] if any(name in found for name in names) else names


def check_types(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Check that weights are dense floating-point numbers, and counters whole ones.

    Raises:
        CheckpointError: one is not; the message names it.
    """
    for name, tensor in found.items():
        allowed = FLOATS if wanted[name].is_floating_point() else (torch.int64,)
        if tensor.layout != torch.strided or tensor.dtype not in allowed:
            raise CheckpointError(
                f'{name!r} is a tensor of {tensor.dtype} ({tensor.layout}), expected a '
                f'dense one of {" or ".join(map(str, allowed))}'
            )
