"""The two attentions of Twins (arXiv 2104.13840, section 3).

Locally-grouped self-attention (LSA, section 3.2) attends within windows; global
sub-sampled attention (GSA, section 3.2; the spatial-reduction attention of PVT) lets
every token attend to a map that a strided convolution has reduced. Both map tokens
(B, H, W, C) to tokens (B, H, W, C).

Departures from the official ``segmentation/gvt.py``:

* LSA never attends to padding. (The official mask marks every token when exactly one
  side of the map needs padding, so padding is attended to.)
* GSA keeps query, key and value weights in one ``in_proj_weight``, under the names of
  mmsegmentation's layout.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ... import ops
from .norm import build_norm


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
        """Attend within windows; (B, H, W, C) to (B, H, W, C)."""
        x = ops.in_autocast_type(x)  # before partitioning, to move fewer bytes
        tokens, windows = ops.to_windows(x, self.window_size)  # (B * H * W, C)
        dropout_rate = self.attn_drop_rate if self.training else 0.0
        out = ops.window_attention(
            self.qkv(tokens), windows, self.num_heads, dropout_rate
        )
        return ops.from_windows(self.proj_drop(self.proj(out)), windows)


class GSA(nn.Module):
    """Global sub-sampled attention: keys and values come from a reduced map.

    Args:
        embed_dims: channels, C.
        num_heads: attention heads; divides ``embed_dims``.
        sr_ratio: kernel and stride of the convolution that reduces the map; 1
            attends to the map itself. Rows and columns that do not fill a kernel are
            left out, as in the official code.
        norm_cfg: the reduced map's normalization; ``eps`` is 1e-5 by default.
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
        # Holds the projections under mmsegmentation's names; its own forward does not
        # take (B, H, W, C) and is not used.
        self.attn = nn.MultiheadAttention(embed_dims, num_heads, bias=qkv_bias)
        self.proj_drop = nn.Dropout(drop_rate)
        if sr_ratio > 1:
            self.sr = nn.Conv2d(embed_dims, embed_dims, sr_ratio, stride=sr_ratio)
            self.norm = build_norm(norm_cfg, embed_dims, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """Attend to the reduced map; (B, H, W, C) to (B, H, W, C)."""
        b, h, w, c = x.shape
        x = ops.in_autocast_type(x)  # once for queries, keys and values
        dims = (self.num_heads, c // self.num_heads)
        (q_weight, kv_weight), (q_bias, kv_bias) = self.projections(c)
        q = F.linear(x, q_weight, q_bias).view(b, h * w, *dims)
        kv = F.linear(self.reduce(x), kv_weight, kv_bias).reshape(b, -1, 2, *dims)
        # each (B, heads, tokens, C / heads)
        q, k, v = (y.transpose(1, 2) for y in (q, *kv.unbind(2)))
        dropout_rate = self.attn_drop_rate if self.training else 0.0
        out = ops.attention(q, k, v, dropout_rate)
        out = out.transpose(1, 2).reshape(b, h, w, c)
        return self.proj_drop(self.attn.out_proj(out))

    def projections(self, c: int) -> tuple:
        """Return weights and biases, each as a pair: query, key and value together."""
        weights = ops.in_autocast_type(self.attn.in_proj_weight).split([c, 2 * c])
        if self.attn.in_proj_bias is None:
            return weights, (None, None)
        return weights, ops.in_autocast_type(self.attn.in_proj_bias).split([c, 2 * c])

    def reduce(self, x: Tensor) -> Tensor:
        """Return the reduced map, (B, H // sr_ratio, W // sr_ratio, C)."""
        if self.sr_ratio == 1:
            return x
        return self.norm(self.sr(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
