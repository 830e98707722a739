"""Matrices of linear interpolation along one axis."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .tracing import is_traced

# Number of tensors that are cached.
CACHE_SIZE = 128


def interpolation(
    size_in: int,
    size_out: int,
    align_corners: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Return the matrix that ``torch.nn.functional.interpolate`` applies to an axis.

    Args:
        size_in: length of the axis.
        size_out: length that it is interpolated to.
        align_corners: as in ``torch.nn.functional.interpolate``.
        dtype: type of the result, which is computed in float64.
        device: where the result is.

    Returns:
        (size_out, size_in).
    """
    make = _matrix if is_traced() else _cached_matrix
    return make(size_in, size_out, align_corners, dtype, device, (0,))[0]


def shifted_interpolation(
    size_in: int,
    size_out: int,
    align_corners: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Return the interpolation as each tap of a 3-tap kernel meets it.

    Returns:
        (3, size_out, size_in): for tap t, row i is that of output place i + t - 1,
        and zero outside. For the arguments see :func:`interpolation`.
    """
    make = _matrix if is_traced() else _cached_matrix
    return make(size_in, size_out, align_corners, dtype, device, (-1, 0, 1))


def source_places(
    index: Tensor, places: Tensor, size_in: int, size_out: int, align_corners: bool
) -> Tensor:
    """Return where output places lie between the input places, from 0 at the first.

    In arithmetic that takes open sizes. Places at the border lie outside by up to half
    a step without ``align_corners``.

    Args:
        index: of the output places.
        places: ``torch.arange(size_out)``.
        size_in: length of the input.
        size_out: length of the output.
        align_corners: as in ``torch.nn.functional.interpolate``.

    Returns:
        Of index's shape, float64.
    """
    if align_corners:
        return (index * (size_in - 1)).double() / places[-1:].clamp(min=1).double()
    return ((2 * index + 1) * size_in).double() / (2 * size_out) - 0.5


def _matrix(size_in, size_out, align_corners, dtype, device, shifts) -> Tensor:
    """(shifts, size_out, size_in), in arithmetic that takes open sizes.

    An output place lies at s between the input places, and takes from place j what a
    hat of width 1 around j has there: max(0, 1 - |s - j|).
    """
    places = torch.arange(size_out, device=device)
    index = places + torch.tensor(shifts, device=device)[:, None]  # (shifts, size_out)
    source = source_places(index, places, size_in, size_out, align_corners)
    place = torch.arange(size_in, device=device).double()
    source = source.maximum(place[:1]).minimum(place[-1:])
    hat = (1 - (source[..., None] - place).abs()).clamp(min=0)
    inside = (index >= 0) & (index < size_out)
    return (hat * inside[..., None]).to(dtype)


@functools.lru_cache(maxsize=CACHE_SIZE)
def _cached_matrix(size_in, size_out, align_corners, dtype, device, shifts) -> Tensor:
    # A tensor made in inference mode could not take part in training later, and not
    # every device has float64.
    with torch.inference_mode(False), torch.no_grad():
        matrix = _matrix(size_in, size_out, align_corners, dtype, 'cpu', shifts)
        return matrix.to(device)
