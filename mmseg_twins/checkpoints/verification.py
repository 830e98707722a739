"""What must hold before anything is written."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from mmengine.model import BaseModule
from torch import Size, Tensor
from torch.overrides import TorchFunctionMode

from ..errors import CheckpointError
from .detection import Detected
from .patterns import Renaming, compile_template

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
IMAGE_SIDE = 64  # px; every stage of every variant keeps tokens of it
CLAIMED = 1 << 30  # bytes that tensors may claim beyond those that they have
NAMED = 3  # how many offending tensors a message names


def check_dense(state: Mapping[str, Tensor]) -> None:
    """Check that tensors are of kinds that models have.

    Raises:
        CheckpointError: one is sparse, quantized, complex or the like; says which.
    """
    for name, tensor in state.items():
        if tensor.layout != torch.strided or (
            tensor.dtype not in FLOATS and tensor.dtype != torch.int64
        ):
            raise CheckpointError(
                f'{name!r} is a tensor of {tensor.dtype} ({tensor.layout}); weights '
                'are dense and of float32, float64, float16 or bfloat16'
            )


def check_claims(state: Mapping[str, Tensor]) -> None:
    """Check that tensors have about as many bytes as their shapes and types claim.

    A tensor can repeat a few bytes as often as it likes, and what is computed from it
    and written would not.

    Raises:
        CheckpointError: they claim far more.
    """
    memory = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in state.values()
        if not tensor.is_meta
    }
    claimed = sum(tensor.nbytes for tensor in state.values() if not tensor.is_meta)
    if claimed > sum(memory.values()) + CLAIMED:
        raise CheckpointError(
            f'its tensors claim {claimed / 2**30:.3g} GiB, of which there are '
            f'{sum(memory.values()) / 2**30:.3g} GiB'
        )


def missing_by_right(
    found: Mapping[str, object], expected: Iterable[str], detected: Detected
) -> list[str]:
    """The expected names that a source lacks and may lack: all of them, or none.

    Args:
        found: the source's names.
        expected: the names that a complete source has.
        detected: what the source is.
    """
    missing = []
    for template in detected.layout.may_be_missing:
        pattern = compile_template(template, detected.family)
        group = [name for name in expected if pattern.fullmatch(name)]
        if not any(name in found for name in group):
            missing += group
    return missing


def check_names_and_shapes(
    found: Mapping[str, Size],
    expected: Mapping[str, Size],
    detected: Detected,
    renaming: Renaming,
) -> None:
    """Compare a source with what the model of its variant asks for.

    Args:
        found: the source's shapes, without what may be dropped.
        expected: the shapes that it must have, without what may be missing.
        detected: what the source is.
        renaming: leads from the source's names to the target's.

    Raises:
        CheckpointError: a tensor is missing, too many or of another shape.
    """
    what = f'{detected.title} of {detected.variant}'
    extra = [name for name in found if name not in expected]
    rivals = {renaming.target(name): name for name in expected if name in found}
    for name in extra:
        # A name of the target in a source that holds the source's own name too.
        target = name if renaming.is_target(name) else None
        if target in rivals:
            raise CheckpointError(
                f'two sources for one target: {rivals[target]!r} and {name!r} are both '
                f'{target!r} in the converted checkpoint'
            )
    problems = [
        f'{name!r} has shape {tuple(found[name])}, expected {tuple(shape)}'
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    problems += [
        f'{name!r} of shape {tuple(shape)} is missing'
        for name, shape in expected.items()
        if name not in found
    ]
    problems += [
        f'{name!r} of shape {tuple(found[name])} is extra, no tensor of that name is '
        'expected'
        for name in extra
    ]
    if problems:
        more = len(problems) - NAMED
        raise CheckpointError(
            f'this is closest to the {what}, but {"; ".join(problems[:NAMED])}'
            + (f'; and {more} more tensors differ' if more > 0 else '')
        )


def check_values(state: Mapping[str, Tensor]) -> None:
    """Check that all values are there and finite.

    Raises:
        CheckpointError: a tensor has NaN or infinity in it, or no values at all; says
            which.
    """
    for name, tensor in state.items():
        if tensor.is_meta:
            raise CheckpointError(f'{name!r} has a shape but no values (meta device)')
        # Extremes carry NaN, and need no memory as large as the tensor.
        if tensor.numel() and not all(
            extreme.isfinite() for extreme in tensor.aminmax()
        ):
            raise CheckpointError(
                f'{name!r} holds {int((~tensor.isfinite()).sum())} values that are NaN '
                f'or infinite, of {tensor.numel()}'
            )


class OneDtype(TorchFunctionMode):
    """Computes in one floating-point type, tensor by tensor.

    Checkpoints may hold several types, which layers cannot mix. Weights are converted
    as they are used, so that there is never a second copy of the whole model.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func, types, args=(), kwargs=None):
        def cast(value):
            if isinstance(value, Tensor) and value.dtype in FLOATS:
                return value.to(self.dtype)
            if type(value) in (tuple, list):  # sizes and named tuples are not
                return type(value)(cast(item) for item in value)
            return value

        kwargs = {key: cast(value) for key, value in (kwargs or {}).items()}
        return func(*cast(tuple(args)), **kwargs)


def check_forward(model: BaseModule, state: Mapping[str, Tensor]) -> None:
    """Load a state dict and run a small image through the model.

    Args:
        model: a backbone or segmentor on the meta device, in evaluation mode; holds
            the tensors of ``state`` afterwards, not copies of them.
        state: all its tensors, in mmsegmentation's names. SVT's norms after the
            stages may be missing; they are the identity then.

    Raises:
        CheckpointError: an output is not finite.
    """
    wanted = model.state_dict()
    fresh = {
        name: torch.full(tensor.shape, float(name.endswith('weight')))
        for name, tensor in wanted.items()
        if name not in state
    }
    model.load_state_dict({**state, **fresh}, strict=True, assign=True)
    dtypes = {tensor.dtype for tensor in state.values()}
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, IMAGE_SIDE, IMAGE_SIDE, generator=generator)
    with torch.inference_mode(), OneDtype(dtype), little_memory():
        outputs = run(model, image)
    for name, output in outputs.items():
        if not torch.isfinite(output).all():
            raise CheckpointError(
                f'a forward pass of the converted model gives NaN or infinity in '
                f'{name}, although all weights are finite: they are of no trained '
                'model'
            )


@contextmanager
def little_memory() -> Iterator[None]:
    """Switch oneDNN off, which copies a convolution's weights to reorder them."""
    with warnings.catch_warnings():
        # PyTorch mentions a feature of Intel's GPUs when it is asked about oneDNN.
        warnings.filterwarnings('ignore', 'TF32 acceleration on top of oneDNN')
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def run(model: BaseModule, image: Tensor) -> dict[str, Tensor]:
    """What a backbone or every head of a segmentor makes of an image, by name."""
    if not hasattr(model, 'decode_head'):
        return {f'stage {index}': part for index, part in enumerate(model(image))}
    features = model.extract_feat(image)
    outputs = {'the decode head': model.decode_head.forward(features)}
    if model.with_auxiliary_head:
        outputs['the auxiliary head'] = model.auxiliary_head.forward(features)
    return outputs
