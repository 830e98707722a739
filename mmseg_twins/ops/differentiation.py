"""Second derivatives of operations with hand-written backward passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .tracing import is_traced


def differentiable_gradients(
    expression: Callable[..., Tensor], inputs: Sequence[Tensor | None], gradient: Tensor
) -> tuple[Tensor | None, ...]:
    """Compute the gradients of an expression as a graph, for second derivatives.

    A hand-written backward pass calls this if ``torch.is_grad_enabled()``, which is
    true only under ``create_graph=True``.

    Args:
        expression: what the operation computes, in plain PyTorch.
        inputs: its arguments.
        gradient: of its result.

    Returns:
        A gradient for each input that requires one, and None for the others.
    """
    # Aliases: one input may have been computed from another, and that path does not
    # belong to the gradients of this expression.
    aliases = [None if x is None else x.view_as(x) for x in inputs]
    needed = [x for x in aliases if x is not None and x.requires_grad]
    gradients = iter(
        torch.autograd.grad(
            expression(*aliases),
            needed,
            gradient,
            create_graph=True,
            materialize_grads=True,
        )
    )
    return tuple(
        next(gradients) if x is not None and x.requires_grad else None for x in aliases
    )


def contiguous_gradient(x: Tensor) -> Tensor:
    """Return ``x``, and make its gradient contiguous in memory.

    A head may return the gradient of tokens (B, H, W, C) in the memory format of
    (B, C, H, W). It would keep that format along the residual connections, and every
    block would have to convert it.
    """
    if x.requires_grad and not is_traced():
        x.register_hook(_contiguous)
    return x


def _contiguous(gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else gradient.contiguous()
