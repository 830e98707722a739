"""The two attentions of Twins (arXiv 2104.13840, section 3).

Locally-grouped self-attention (LSA, section 3.2) attends within windows;
global sub-sampled attention (GSA, section 3.2; PVT's spatial-reduction
attention) lets every token attend to a strided-convolution summary of the map.
Both take and return tokens of shape (B, H, W, C) and run through PyTorch's fused
``scaled_dot_product_attention`` wherever it is the fastest way (see :mod:`.attend`).

Departures from the official ``segmentation/gvt.py``:

* A map whose sides are no multiple of the window is neither padded nor masked.
  The windows at the right and bottom border are attended at their true extent,
  which is what a correct padding mask computes. (The official mask marks every
  token when exactly one side needs padding, so padding is attended to.)
* GSA keeps query, key and value weights in one ``in_proj_weight``, under the
  names of mmsegmentation's layout.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...ops.attention import attend
from .norm import build_norm


def to_windows(x: Tensor, window_height: int, window_width: int) -> Tensor:
    """Cuts a map into equal windows that tile it.

    Args:
        x: tokens, (B, H, W, C), with H and W multiples of the window's sides.
        window_height: rows of a window.
        window_width: columns of a window.

    Returns:
        (B * number of windows, window_height * window_width, C), windows of an
        image in row-major order.
    """
    b, h, w, c = x.shape
    x = x.reshape(
        b, h // window_height, window_height, w // window_width, window_width, c
    )
    return x.transpose(2, 3).reshape(-1, window_height * window_width, c)


def from_windows(
    windows: Tensor,
    window_height: int,
    window_width: int,
    height: int,
    width: int,
) -> Tensor:
    """Joins windows to a map: the inverse of :func:`to_windows`.

    Args:
        windows: (B * number of windows, window_height * window_width, C).
        window_height: rows of a window.
        window_width: columns of a window.
        height: rows of the map.
        width: columns of the map.

    Returns:
        Tokens, (B, height, width, C).
    """
    rows, columns = height // window_height, width // window_width
    c = windows.shape[-1]
    x = windows.reshape(-1, rows, columns, window_height, window_width, c)
    return x.transpose(2, 3).reshape(-1, height, width, c)


def tile(length: int, window_size: int) -> list[tuple[int, int]]:
    """Splits a side into a stretch of whole windows and a ragged rest.

    Args:
        length: the side, in tokens.
        window_size: the window's side, in tokens.

    Returns:
        ``(stretch, window side)`` pairs, at most two: the largest multiple of
        ``window_size``, then the rest as one window.
    """
    rest = length % window_size
    pairs = ((length - rest, window_size), (rest, rest))
    return [(stretch, side) for stretch, side in pairs if stretch]


def split_windows(x: Tensor, window_size: int) -> list[Tensor]:
    """Cuts any map into windows; those at the right and bottom may be smaller.

    Args:
        x: tokens, (B, H, W, C).
        window_size: side of a whole window, in tokens.

    Returns:
        Up to four tensors of equal windows, each (number, tokens in a window, C):
        whole windows, right column, bottom row, corner, as far as there are any.
    """
    tiles_h, tiles_w = (tile(side, window_size) for side in x.shape[1:3])
    strips = x.split([stretch for stretch, _ in tiles_h], dim=1)
    return [
        to_windows(part, window_height, window_width)
        for strip, (_, window_height) in zip(strips, tiles_h, strict=True)
        for part, (_, window_width) in zip(
            strip.split([stretch for stretch, _ in tiles_w], dim=2),
            tiles_w,
            strict=True,
        )
    ]


def join_windows(
    windows: Sequence[Tensor], window_size: int, height: int, width: int
) -> Tensor:
    """Joins windows of several sizes to a map: inverse of :func:`split_windows`.

    Args:
        windows: tensors of equal windows, in the order of :func:`split_windows`.
        window_size: side of a whole window, in tokens.
        height: rows of the map.
        width: columns of the map.

    Returns:
        Tokens, (B, height, width, C).
    """
    parts = iter(windows)
    strips = [
        concatenate(
            [
                from_windows(next(parts), window_height, window_width, rows, columns)
                for columns, window_width in tile(width, window_size)
            ],
            dim=2,
        )
        for rows, window_height in tile(height, window_size)
    ]
    return concatenate(strips, dim=1)


def concatenate(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """``torch.cat`` that does not copy a single tensor."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


class LSA(nn.Module):
    """Locally-grouped self-attention: full attention within each window.

    Args:
        embed_dims: channels, C.
        num_heads: attention heads; divides ``embed_dims``.
        window_size: side of the square windows, in tokens.
        qkv_bias: whether query, key and value have a bias.
        attn_drop_rate: dropout rate of the attention weights.
        drop_rate: dropout rate of the output.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        window_size: int,
        *,
        qkv_bias: bool = True,
        attn_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.attn_drop_rate = attn_drop_rate
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims, bias=qkv_bias)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Attends within windows; (B, H, W, C) to (B, H, W, C)."""
        _, h, w, _ = x.shape
        windows = split_windows(x, self.window_size)
        counts = [group.shape[0] * group.shape[1] for group in windows]
        # The projections do not care about windows: one product for all tokens.
        tokens = concatenate([group.flatten(0, 1) for group in windows], dim=0)
        attended = [
            self.attend(qkv.unflatten(0, group.shape[:2]))
            for qkv, group in zip(self.qkv(tokens).split(counts), windows, strict=True)
        ]
        out = self.proj_drop(self.proj(concatenate(attended, dim=0)))
        return join_windows(out.split(counts), self.window_size, h, w)

    def attend(self, qkv: Tensor) -> Tensor:
        """Attention in windows (N, L, 3 * C); returns their tokens, (N * L, C)."""
        qkv = qkv.unflatten(2, (3, self.num_heads, -1))
        q, k, v = qkv.transpose(1, 3).unbind(2)  # each (N, heads, L, C / heads)
        out = attend(q, k, v, self.attn_drop_rate if self.training else 0.0)
        return out.transpose(1, 2).flatten(0, 1).flatten(1)


class GSA(nn.Module):
    """Global sub-sampled attention: keys and values from a reduced map.

    Args:
        embed_dims: channels, C.
        num_heads: attention heads; divides ``embed_dims``.
        sr_ratio: kernel and stride of the convolution that reduces the map; 1
            attends to the map itself. Rows and columns that do not fill a
            kernel are left out, as in the official code.
        norm_cfg: the reduced map's normalization; an ``eps`` that it does not
            give is 1e-5.
        qkv_bias: whether query, key, value and output projection have a bias.
        attn_drop_rate: dropout rate of the attention weights.
        drop_rate: dropout rate of the output.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        sr_ratio: int,
        *,
        norm_cfg: dict,
        qkv_bias: bool = True,
        attn_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.sr_ratio = sr_ratio
        self.attn_drop_rate = attn_drop_rate
        # Holds the projections under mmsegmentation's names; its own forward,
        # which knows no (B, H, W, C), is not used.
        self.attn = nn.MultiheadAttention(embed_dims, num_heads, bias=qkv_bias)
        self.proj_drop = nn.Dropout(drop_rate)
        if sr_ratio > 1:
            self.sr = nn.Conv2d(embed_dims, embed_dims, sr_ratio, stride=sr_ratio)
            self.norm = build_norm(norm_cfg, embed_dims, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """Attends to the reduced map; (B, H, W, C) to (B, H, W, C)."""
        b, h, w, c = x.shape
        q_weight, kv_weight = self.attn.in_proj_weight.split([c, 2 * c])
        q_bias, kv_bias = None, None
        if self.attn.in_proj_bias is not None:
            q_bias, kv_bias = self.attn.in_proj_bias.split([c, 2 * c])
        q = F.linear(x, q_weight, q_bias).view(b, h * w, self.num_heads, -1)
        kv = F.linear(self.reduce(x), kv_weight, kv_bias)
        kv = kv.reshape(b, -1, 2, self.num_heads, c // self.num_heads)
        k, v = kv.transpose(1, 3).unbind(2)  # each (B, heads, M, C / heads)
        dropout_rate = self.attn_drop_rate if self.training else 0.0
        out = attend(q.transpose(1, 2), k, v, dropout_rate)
        out = out.transpose(1, 2).reshape(b, h, w, c)
        return self.proj_drop(self.attn.out_proj(out))

    def reduce(self, x: Tensor) -> Tensor:
        """The map that is attended to, (B, H // sr_ratio, W // sr_ratio, C)."""
        if self.sr_ratio == 1:
            return x
        return self.norm(self.sr(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
