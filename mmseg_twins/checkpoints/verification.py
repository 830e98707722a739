"""Verify a converted checkpoint before it is written."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from mmengine.model import BaseModule
from torch import Tensor

from ..errors import CheckpointError

IMAGE_SIDE = 64  # px, enough for every stage of every variant
CLAIMED = 1 << 30  # bytes by which the shapes of tensors may exceed their storages


def verify(
    model: BaseModule, state: Mapping[str, Tensor], source: Mapping[str, Tensor]
) -> list[str]:
    """Check that all values and the outputs of a forward pass are finite.

    Args:
        model: a backbone or segmentor on the meta device, in evaluation mode; it holds
            the weights afterwards.
        state: its tensors. SVT's norms after the stages may be missing and are the
            identity then. Nothing is checked if a tensor is on the meta device.
        source: the same tensors by the source's names, for messages.

    Returns:
        Descriptions of what was checked.

    Raises:
        CheckpointError: a value or an output is not finite, or there are fewer values
            than the shapes claim.
    """
    if any(tensor.is_meta for tensor in state.values()):
        return []
    check_claims(source)
    check_values(source)
    check_forward(model, state)
    return ['finite values', 'a forward pass']


def check_claims(state: Mapping[str, Tensor]) -> None:
    """Check that tensors have about as many bytes as their shapes and types claim.

    A tensor with strides of 0 repeats a few bytes, but its copies and results take all
    of the memory that its shape claims.
    """
    storages = [tensor.untyped_storage() for tensor in state.values()]
    present = sum(
        {storage.data_ptr(): storage.nbytes() for storage in storages}.values()
    )
    claimed = sum(tensor.nbytes for tensor in state.values())
    if claimed > present + CLAIMED:
        raise CheckpointError(
            f'its tensors claim {claimed / 2**30:.3g} GiB, but the file has only '
            f'{present / 2**30:.3g} GiB'
        )


def check_values(state: Mapping[str, Tensor]) -> None:
    """Check that all values are finite."""
    for name, tensor in state.items():
        # Extremes carry NaN, and need no memory as large as the tensor.
        if tensor.numel() and not all(
            extreme.isfinite() for extreme in tensor.aminmax()
        ):
            raise CheckpointError(
                f'{int((~tensor.isfinite()).sum())} of the {tensor.numel()} values of '
                f'{name!r} are NaN or infinite'
            )


def check_forward(model: BaseModule, state: Mapping[str, Tensor]) -> None:
    """Load a state dict and run a small image through the model."""
    is_double = any(tensor.dtype == torch.float64 for tensor in state.values())
    dtype = torch.float64 if is_double else torch.float32
    state = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }
    identity = {
        name: torch.full(tensor.shape, float(name.endswith('weight')), dtype=dtype)
        for name, tensor in model.state_dict().items()
        if name not in state
    }
    model.load_state_dict({**state, **identity}, strict=True, assign=True)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, IMAGE_SIDE, IMAGE_SIDE, generator=generator)
    with torch.inference_mode():
        outputs = run(model, image.to(dtype))
    for name, output in outputs.items():
        if not output.isfinite().all():
            raise CheckpointError(
                f'a forward pass of the converted model gives NaN or infinity in '
                f'{name}, although all weights are finite: the checkpoint is not of a '
                'trained model'
            )


def run(model: BaseModule, image: Tensor) -> dict[str, Tensor]:
    """Return the outputs of a backbone, or of every head of a segmentor, by name."""
    if not hasattr(model, 'decode_head'):
        return {f'stage {index}': output for index, output in enumerate(model(image))}
    features = model.extract_feat(image)
    outputs = {'the decode head': model.decode_head.forward(features)}
    if model.with_auxiliary_head:
        outputs['the auxiliary head'] = model.auxiliary_head.forward(features)
    return outputs
