r"""3x3 convolution, on a CPU by Winograd's minimal filtering, F(2x2, 3x3).

Two neighboring results of a 1D convolution with three taps take six multiplications;
Winograd's algorithm takes four (Lavin and Gray, "Fast Algorithms for Convolutional
Neural Networks", arXiv 1509.09308). In 2D it is 16 instead of 36. For each 2x2 tile of
the result, ``d`` the 4x4 tile of the input that it depends on and ``g`` the kernel::

    result = A' [(G g G') * (B' d B)] A

where ``*`` multiplies elementwise, and over channels is a matrix product for each of
the 16 places. B' and A' only add and subtract. Nothing is approximated: the result
differs from the plain convolution's by rounding, no more than that does from the true
one. Half precision would round the sums in between, so it is not done there.

The gradient with respect to the input is a convolution again, with the kernel turned
around and its channels transposed. That with respect to the kernel is the expression
above read backwards: ``G' [sum over tiles of (A d_result A') * (B' d B)] G``.

The CPU version goes through maps in strips of tiles, whose transforms stay in the
cache. Runtimes for exported graphs have no such algorithm for a CPU, so that there is a
version for their graphs too, as convolutions that they do well: depth-wise ones for B',
1x1 ones for the 16 products.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from .differentiation import differentiable_gradients
from .tracing import is_open

# Bytes of a strip's transformed tiles.
STRIP = 2**23
# Numbers of channels and of pixels, from which on the transforms pay.
MIN_CHANNELS = 128
MIN_PIXELS = 32 * 32
# B' as sums of two places of a tile, each with its sign.
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
    sign = x.new_tensor([1, 1, 1, -1])
    kernel = kernel_transform(x) * torch.outer(sign, sign).view(16, 1)
    kernel = (kernel @ weight.reshape(o * c, 9).T).view(4, 4, o, c, 1, 1)
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
    kernel = kernel_transform(x) @ weight.reshape(o * c, 9).T
    kernel = kernel.view(16, o, c).transpose(1, 2)
    rows, columns = -(-h // 2), -(-w // 2)  # of tiles
    out = x.new_empty(b, 2 * rows, 2 * columns, o)
    for image, first, strip in strips(x):
        tiles = strip.shape[2]
        product = torch.bmm(strip.flatten(0, 1).flatten(1, 2), kernel)
        result = out[image, 2 * first : 2 * (first + tiles)]
        transform_result(product.view(4, 4, tiles, columns, o), result)
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
    gradient = F.pad(gradient.permute(0, 2, 3, 1), (0, 0, 0, w % 2, 0, h % 2))
    total = x.new_zeros(16, o, c)
    for image, first, strip in strips(x):
        part = gradient[image, 2 * first : 2 * (first + strip.shape[2])]
        part = untransform_result(part)
        total.baddbmm_(
            part.flatten(0, 1).flatten(1, 2).transpose(1, 2),
            strip.flatten(0, 1).flatten(1, 2),
        )
    total = kernel_transform(x).T @ total.view(16, o * c)
    return total.T.reshape(o, c, 3, 3)


def kernel_transform(like: Tensor) -> Tensor:
    """Return G x G, which maps a kernel's 9 numbers to 16, in the type of ``like``."""
    g = like.new_tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    return torch.kron(g, g)


def strips(x: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Go through the transformed input tiles B' d B of a map.

    Args:
        x: the map, (B, C, H, W).

    Yields:
        Number of the image, number of the first row of tiles, and the tiles,
        (4, 4, rows of tiles, columns of tiles, C), valid until the next.
    """
    b, c, h, w = x.shape
    x = x.permute(0, 2, 3, 1)
    rows, columns = -(-h // 2), -(-w // 2)
    size = min(rows, max(1, STRIP // (16 * columns * c * x.itemsize)))
    tiles = x.new_empty(4, 4, size, columns, c)
    # Padded by zeros on all sides, which are never written to on the left and right.
    slab = x.new_zeros(2 * size + 2, 2 * columns + 2, c)
    for image in range(b):
        for first in range(0, rows, size):
            count = min(size, rows - first)
            start, stop = 2 * first - 1, 2 * (first + count) + 1
            inside = slice(max(start, 0), min(stop, h))
            slab[: inside.start - start] = 0
            slab[inside.stop - start :] = 0
            place = slice(inside.start - start, inside.stop - start)
            slab[place, 1 : w + 1] = x[image, inside]
            part = tiles[:, :, :count]
            transform_input(slab[: 2 * count + 2], part)
            yield image, first, part


def transform_input(slab: Tensor, tiles: Tensor) -> None:
    """Write B' d B of each 4x4 tile d, taken every 2 pixels.

    Args:
        slab: (2 * rows of tiles + 2, 2 * columns of tiles + 2, C).
        tiles: (4, 4, rows of tiles, columns of tiles, C), written to.
    """
    by_row = four_differences(*(slab[i : i + len(slab) - 2 : 2] for i in range(4)))
    for part, out in zip(by_row, tiles, strict=True):
        width = part.shape[1] - 2
        four_differences(*(part[:, i : i + width : 2] for i in range(4)), out=out)


def four_differences(
    a: Tensor, b: Tensor, c: Tensor, d: Tensor, out: Tensor | None = None
) -> Tensor:
    """Apply B' along one axis: a - c, b + c, c - b, b - d."""
    out = a.new_empty(4, *a.shape) if out is None else out
    torch.sub(a, c, out=out[0])
    torch.add(b, c, out=out[1])
    torch.sub(c, b, out=out[2])
    torch.sub(b, d, out=out[3])
    return out


def transform_result(product: Tensor, out: Tensor) -> None:
    """Write A' m A of each 4x4 m as a 2x2 tile.

    Args:
        product: (4, 4, rows of tiles, columns of tiles, O).
        out: (2 * rows of tiles, 2 * columns of tiles, O), written to.
    """
    upper = (product[0] + product[1]).add_(product[2])
    lower = (product[1] - product[2]).sub_(product[3])
    for row, (a, b, c, d) in enumerate((upper, lower)):
        torch.add(a, b, out=out[row::2, 0::2]).add_(c)
        torch.sub(b, c, out=out[row::2, 1::2]).sub_(d)


def untransform_result(gradient: Tensor) -> Tensor:
    """Compute A t A' of each 2x2 tile t.

    Args:
        gradient: (2 * rows of tiles, 2 * columns of tiles, O).

    Returns:
        (4, 4, rows of tiles, columns of tiles, O).
    """
    by_row = two_to_four(gradient[0::2], gradient[1::2])  # 4, rows, columns, O
    by_both = two_to_four(by_row[:, :, 0::2], by_row[:, :, 1::2])
    return by_both.transpose(0, 1).contiguous()


def two_to_four(a: Tensor, b: Tensor) -> Tensor:
    """Apply A along one axis: a, a + b, a - b, -b."""
    return torch.stack([a, a + b, a - b, -b])
