"""What a state dict is: which project's layout, which family, which size.

Found from names and shapes alone, and by most of them, so that a checkpoint with a
tensor too many or too few is still known for what it was meant to be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Size, Tensor

from ..errors import CheckpointError
from .layouts import LAYOUTS, Layout
from .models import VARIANTS, backbone_tensors
from .patterns import Renaming, compile_template

DATA_PARALLEL = 'module.'


@dataclass(frozen=True)
class Detected:
    """What a state dict is.

    Attributes:
        layout: its project's layout.
        variant: the nearest variant, such as ``'svt-s'``.
        dropped: its names that have no place in the target.
        classifier: whether it is a classifier's backbone, as ImageNet's checkpoints
            are.
    """

    layout: Layout
    variant: str
    dropped: tuple[str, ...]
    classifier: bool = False

    @property
    def family(self) -> str:
        """``'pcpvt'`` or ``'svt'``."""
        return self.variant.split('-')[0]

    @property
    def title(self) -> str:
        """What it is, for people."""
        kind = 'classifier' if self.classifier else 'backbone'
        kind = 'segmentor' if self.layout.is_segmentor else kind
        return f'{self.layout.project} {kind}'


def strip_data_parallel(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take away the ``module.`` that DataParallel puts in front of names.

    Raises:
        CheckpointError: two tensors have the same name then.
    """
    stripped: dict[str, Tensor] = {}
    for name, tensor in state.items():
        short = name
        while short.startswith(DATA_PARALLEL):
            short = short.removeprefix(DATA_PARALLEL)
        if short in stripped:
            raise CheckpointError(
                f'two sources for one target: {short!r} is there with and without '
                f'{DATA_PARALLEL!r} in front'
            )
        stripped[short] = tensor
    return stripped


def detect(shapes: Mapping[str, Size]) -> Detected:
    """Say what a state dict is.

    Args:
        shapes: shapes by name, without ``module.``.

    Raises:
        CheckpointError: it is no Twins.
    """
    layout, family, matched = max(
        (
            (layout, family, count_backbone(layout, family, shapes))
            for layout in LAYOUTS
            for family in ('pcpvt', 'svt')
        ),
        key=lambda candidate: candidate[2],
    )
    inside = [name for name in shapes if name.startswith(layout.prefix)]
    if 2 * matched <= len(inside) or not matched:
        examples = ', '.join(repr(name) for name in list(shapes)[:3])
        raise CheckpointError(
            f'this is no Twins checkpoint: {matched} of its {len(shapes)} tensors are '
            f'named as those of a Twins backbone are (it begins with {examples})'
        )
    patterns = [compile_template(name, family) for name in layout.may_drop]
    dropped = tuple(
        name for name in shapes if any(pattern.fullmatch(name) for pattern in patterns)
    )
    renaming = Renaming(layout.backbone, family)
    found = {
        name: shape
        for name, shape in shapes.items()
        if renaming.target(name) is not None
    }
    variant = min(
        (variant for variant in VARIANTS if variant.startswith(family)),
        key=lambda variant: count_differences(
            found, expected_backbone(layout, variant)
        ),
    )
    has_head = any(name.startswith('head.') for name in dropped)
    has_stage_norms = any(name.startswith('norm_list.') for name in shapes)
    return Detected(layout, variant, dropped, has_head and not has_stage_norms)


def count_backbone(layout: Layout, family: str, names: Iterable[str]) -> int:
    """How many names belong to a backbone of a layout and family."""
    renaming = Renaming(layout.backbone, family)
    return sum(
        name.startswith(layout.prefix) and renaming.target(name) is not None
        for name in names
    )


def expected_backbone(layout: Layout, variant: str) -> dict[str, Size]:
    """The shapes of a variant's backbone by a layout's names."""
    tensors = backbone_tensors(variant)
    if layout.is_segmentor:
        tensors = {f'backbone.{name}': tensor for name, tensor in tensors.items()}
    renaming = Renaming(layout.backbone, variant.split('-')[0])
    state = renaming.backwards(tensors).state
    return {name: tensor.shape for name, tensor in state.items()}


def count_differences(found: Mapping[str, Size], expected: Mapping[str, Size]) -> int:
    """How many tensors are missing, too many, or of another shape."""
    return sum(
        found.get(name) != expected.get(name) for name in found.keys() | expected.keys()
    )
