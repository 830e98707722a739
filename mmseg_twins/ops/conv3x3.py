r"""3x3 convolution, on a CPU by Winograd's minimal filtering, F(4x4, 3x3).

Four neighboring results of a 1D convolution with three taps take twelve
multiplications; Winograd's algorithm takes six (Lavin and Gray, "Fast Algorithms for
Convolutional Neural Networks", arXiv 1509.09308). In 2D it is 36 instead of 144. For
each 4x4 tile of the result, ``d`` the 6x6 tile of the input that it depends on and
``g`` the kernel::

    result = A' [(G g G') * (B' d B)] A

where ``*`` multiplies elementwise, and over channels is a matrix product for each of
the 36 places. Input and kernel become values of polynomials at five points and
infinity, and the result is interpolated from their product. Nothing is approximated.
Rounding depends on the points: 0 and plus and minus the roots of 1/2 and 2 give errors
like those of the plain convolution, while the usual 0, 1, -1, 2 and -2 double them.
Half precision would round the numbers in between, so it is not done there.

A tile's numbers are put in a row here, so that each transform is a single product with
a small constant matrix, such as the Kronecker product of A' with itself.

The gradient with respect to the input is a convolution again, with the kernel turned
around and its channels transposed. That with respect to the kernel is the expression
above read backwards: ``G' [sum over tiles of (A d_result A') * (B' d B)] G``.

The CPU version goes through maps in strips of tiles, whose transforms stay in the
cache. Runtimes for exported graphs have no such algorithm for a CPU, so that there is a
version for their graphs too: F(2x2, 3x3) as convolutions that they do well, depth-wise
ones for B' and 1x1 ones for the 16 products.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .differentiation import differentiable_gradients
from .tracing import is_open

# Sides of the tiles of the result and of the input, and the numbers of an input's tile.
TILE, OVERLAPPING = 4, 6
PLACES = OVERLAPPING**2
# Where polynomials are evaluated, beside infinity.
POINTS = (0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))
# Bytes of a strip's transformed tiles.
STRIP = 2**23
# Numbers of channels and of pixels, from which on the transforms pay.
MIN_CHANNELS = 128
MIN_PIXELS = 32 * 32
# Of F(2x2, 3x3): G, and B' as sums of two places of a tile, each with its sign.
KERNEL_2X2 = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, -1))
DIFFERENCES = ((0, 2, 1, -1), (1, 2, 1, 1), (1, 2, -1, 1), (1, 3, 1, -1))


def portable(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute the convolution by PyTorch; see :func:`mmseg_twins.ops.conv3x3`."""
    return F.conv2d(x, weight, bias, padding=1)


def is_faster_in_graph(x: Tensor, weight: Tensor) -> bool:
    """Return whether :func:`in_graph` is faster in a runtime on a CPU."""
    # Open sizes are taken for large ones: comparing them would close them.
    is_large = is_open(*x.shape[2:]) or x.shape[2] * x.shape[3] >= MIN_PIXELS
    return is_large and min(weight.shape[:2]) >= MIN_CHANNELS


def in_graph(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute the convolution by Winograd's algorithm in operations that ONNX has.

    The last rows of G and A are negated, so that A' subtracts a single number.
    """
    (_, c, h, w), o = x.shape, len(weight)
    kernel = x.new_tensor(KERNEL_2X2)
    kernel = torch.kron(kernel, kernel) @ weight.reshape(o * c, 9).T
    kernel = kernel.view(4, 4, o, c, 1, 1)
    columns = [
        four_to_two(*(F.conv2d(tiles_at(x, i, j), kernel[i, j]) for i in range(4)))
        for j in range(4)
    ]  # of each column of a tile's products, the upper and the lower sum
    rows = []
    for sums in zip(*columns, strict=True):
        # The channels of the left and the right result follow each other, and become
        # neighbors in a row.
        row = torch.cat(four_to_two(*sums), dim=1).permute(0, 2, 3, 1)
        rows.append(row.unflatten(3, (2, o)).flatten(2, 3))
    out = torch.stack(rows, dim=2).flatten(1, 2)  # B, H or one more, W or one more, O
    out = cut_to(cut_to(out, 1, h), 2, w).permute(0, 3, 1, 2)
    return out if bias is None else out + bias[:, None, None]


def tiles_at(x: Tensor, row: int, column: int) -> Tensor:
    """Return one place of the transformed input tiles B' d B.

    Args:
        x: (B, C, H, W).
        row: of the place, 0 to 3.
        column: likewise.

    Returns:
        (B, C, rows of tiles, columns of tiles).
    """
    (top, bottom, upper, lower), (left, right, *signs) = (
        DIFFERENCES[row],
        DIFFERENCES[column],
    )
    kernel = torch.outer(x.new_tensor([upper, lower]), x.new_tensor(signs))
    # Tiles begin one place before the map, and the last one may end two after it.
    x = F.pad(x, (1 - left, right - 1, 1 - top, bottom - 1))
    return F.conv2d(
        x,
        kernel.expand(x.shape[1], 1, 2, 2),
        stride=2,
        dilation=(bottom - top, right - left),
        groups=x.shape[1],
    )


def four_to_two(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Apply A', its last column negated, along one axis."""
    return a + b + c, b + d - c


def cut_to(x: Tensor, dim: int, size: int) -> Tensor:
    """Leave out the place after ``size`` where there is one."""
    if is_open(size):  # a slice would have to know which one is less
        return x.index_select(dim, torch.arange(size, device=x.device))
    return x.narrow(dim, 0, size)


def is_faster_on_cpu(x: Tensor, weight: Tensor) -> bool:
    """Return whether :func:`winograd` is faster than PyTorch, and as exact."""
    return (
        x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.float64)
        and min(weight.shape[:2]) >= MIN_CHANNELS
        and x.shape[2] * x.shape[3] >= MIN_PIXELS
        and not torch.is_autocast_enabled('cpu')
    )


def on_cpu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute the convolution by Winograd's algorithm, in eager mode on a CPU."""
    out = _WinogradConv.apply(x, weight)
    return out if bias is None else out + bias[:, None, None]


class _WinogradConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return winograd(x, weight)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            return differentiable_gradients(portable, (x, weight), gradient)
        return fastest_backward(gradient, x, weight, ctx.needs_input_grad)


def fastest(x: Tensor, weight: Tensor) -> Tensor:
    """Compute the convolution the fastest way on a CPU, outside autograd."""
    if is_faster_on_cpu(x, weight):
        return winograd(x, weight)
    return portable(x, weight)


def fastest_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, needed: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Compute the gradients of :func:`fastest` for x and weight, where needed."""
    if not is_faster_on_cpu(x, weight):
        return torch.ops.aten.convolution_backward(
            gradient,
            x,
            weight,
            bias_sizes=None,
            stride=(1, 1),
            padding=(1, 1),
            dilation=(1, 1),
            transposed=False,
            output_padding=(0, 0),
            groups=1,
            output_mask=(*needed, False),
        )[:2]
    dx = dweight = None
    if needed[0]:
        dx = winograd(gradient, weight.flip(2, 3).transpose(0, 1))
    if needed[1]:
        dweight = winograd_weight_gradient(x, gradient)
    return dx, dweight


def winograd(x: Tensor, weight: Tensor) -> Tensor:
    """Compute ``conv2d(x, weight, padding=1)``, outside autograd.

    Args:
        x: the map, (B, C, H, W).
        weight: the kernel, (O, C, 3, 3).

    Returns:
        (B, O, H, W), in channels_last memory.
    """
    (b, c, h, w), o = x.shape, len(weight)
    results, kernels, _ = transforms(x.dtype)
    # In parts: memory for all of them at once would be new, and cost page faults.
    kernel = [
        (part @ weight.reshape(o * c, 9).T).view(-1, o, c).transpose(1, 2)
        for part in kernels.split(OVERLAPPING)
    ]
    rows, columns = tiles_along(h), tiles_along(w)
    out = x.new_empty(b, rows, TILE, columns, TILE, o)
    for image, strip, tiles in strips(x):
        product = x.new_empty(PLACES, tiles.shape[1], o)
        for part, *operands in zip(
            product.split(OVERLAPPING), tiles.split(OVERLAPPING), kernel, strict=True
        ):
            torch.bmm(*operands, out=part)
        result = (results @ product.flatten(1)).view(TILE, TILE, -1, columns, o)
        out[image, strip] = result.permute(2, 0, 3, 1, 4)
    out = out.flatten(3, 4).flatten(1, 2)
    return out[:, :h, :w].contiguous().permute(0, 3, 1, 2)


def winograd_weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """Compute the kernel's gradient of ``conv2d(x, weight, padding=1)``.

    Args:
        x: the map, (B, C, H, W).
        gradient: of the result, (B, O, H, W).

    Returns:
        (O, C, 3, 3).
    """
    (_, c, h, w), o = x.shape, gradient.shape[1]
    results, kernels, _ = transforms(x.dtype)
    gradient = F.pad(gradient.permute(0, 2, 3, 1), (0, 0, 0, -w % TILE, 0, -h % TILE))
    gradient = gradient.unflatten(2, (-1, TILE)).unflatten(1, (-1, TILE))
    total = x.new_zeros(PLACES, o, c)
    for image, strip, tiles in strips(x):
        part = gradient[image, strip].permute(1, 3, 0, 2, 4).reshape(TILE**2, -1)
        part = (results.T @ part).view(PLACES, -1, o)
        total.baddbmm_(part.transpose(1, 2), tiles)
    return (kernels.T @ total.flatten(1)).T.reshape(o, c, 3, 3)


def tiles_along(side: int) -> int:
    """Return how many tiles of the result cover a side of a map."""
    return -(-side // TILE)


@functools.lru_cache
def transforms(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return the matrices for numbers in a row.

    Returns:
        Those of A', (16, 36), of G, (36, 9), and of B', (36, 36).
    """
    points = np.array(POINTS)
    others = [np.delete(points, i) for i in range(len(points))]
    a = np.vander(points, TILE, increasing=True)
    g = np.vander(points, 3, increasing=True)
    g /= [[np.prod(x - rest)] for x, rest in zip(points, others, strict=True)]
    b = [np.append(np.poly(rest)[::-1], 0) for rest in others]
    # At infinity, a polynomial is its leading coefficient.
    a, g = (np.vstack([m, np.eye(m.shape[1])[-1]]) for m in (a, g))
    matrices = a.T, g, np.vstack([*b, np.poly(points)[::-1]])
    with torch.inference_mode(False):  # usable in training as well
        results, kernels, inputs = (
            torch.tensor(np.kron(m, m), dtype=dtype) for m in matrices
        )
    return results, kernels, inputs


def strips(x: Tensor) -> Iterator[tuple[int, slice, Tensor]]:
    """Go through the transformed input tiles B' d B of a map.

    Args:
        x: the map, (B, C, H, W).

    Yields:
        Number of the image, rows of tiles, and the tiles, (36, tiles, C), valid until
        the next.
    """
    b, c, h, w = x.shape
    x = x.permute(0, 2, 3, 1)
    *_, inputs = transforms(x.dtype)
    rows, columns = tiles_along(h), tiles_along(w)
    row = columns * c
    size = min(rows, max(1, STRIP // (PLACES * row * x.itemsize)))
    # Padded by zeros on all sides, which are never written to on the left and right.
    slab = x.new_zeros(TILE * size + 2, TILE * columns + 2, c)
    cut = slab.unfold(0, OVERLAPPING, TILE).unfold(1, OVERLAPPING, TILE)
    cut = cut.permute(3, 4, 0, 1, 2)
    plain, transformed = (x.new_empty(PLACES, size * row) for _ in range(2))
    for image in range(b):
        for first in range(0, rows, size):
            count = min(size, rows - first)
            start, stop = TILE * first - 1, TILE * (first + count) + 1
            inside = slice(max(start, 0), min(stop, h))
            slab[: inside.start - start] = 0
            slab[inside.stop - start :] = 0
            place = slice(inside.start - start, inside.stop - start)
            slab[place, 1 : w + 1] = x[image, inside]
            tiles, out = plain[:, : count * row], transformed[:, : count * row]
            tiles.view(OVERLAPPING, OVERLAPPING, count, columns, c).copy_(
                cut[:, :, :count]
            )
            torch.mm(inputs, tiles, out=out)
            yield image, slice(first, first + count), out.unflatten(1, (-1, c))
