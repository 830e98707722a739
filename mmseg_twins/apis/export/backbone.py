"""The forward pass of PCPVT and SVT with the map's size left open.

The functions take a module of :mod:`mmseg_twins.models.backbones`, use its parameters and
return what it does. They are for evaluation: no dropout, no stochastic depth.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from ...models.backbones.attention import GSA, LSA
from ...models.backbones.blocks import PatchEmbedding
from ...models.backbones.twins import Twins
from .grids import Windows, cover_with_windows


def run_backbone(backbone: Twins, x: Tensor) -> list[Tensor]:
    """The pyramid of feature maps; (B, 3, H, W) to (B, C_i, H_i, W_i) each."""
    maps = []
    for stage, blocks in enumerate(backbone.layers):
        x = embed(backbone.patch_embeds[stage], x)  # (B, C, H, W)
        size = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)  # (B, H * W, C)
        x = backbone.patch_embeds[stage].norm(x)
        encoding = backbone.position_encodings[stage].proj
        windows = None
        for index, block in enumerate(blocks):
            attention, tokens = block.attn, block.norm1(x)
            if isinstance(attention, LSA):
                if windows is None:
                    windows = cover_with_windows(*size, attention.window_size, x)
                x = x + attend_locally(attention, tokens, windows)
            else:
                x = x + attend_globally(attention, tokens, size)
            x = x + block.ffn(block.norm2(x))
            if index == 0:
                x = x + to_tokens(encoding(to_map(x, size)))
        if backbone.norm_list:
            x = backbone.norm_list[stage](x)
        x = to_map(x, size)
        if stage in backbone.out_indices:
            maps.append(x)
    return maps


def to_map(x: Tensor, size: Sequence[int]) -> Tensor:
    """(B, H * W, C) to (B, C, H, W)."""
    return x.transpose(1, 2).unflatten(2, size)


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H * W, C)."""
    return x.flatten(2).transpose(1, 2)


def embed(module: PatchEmbedding, x: Tensor) -> Tensor:
    """The convolution of a patch embedding; (B, C, H, W) to (B, embed_dims, H', W')."""
    # A convolution whose stride is its kernel takes as many whole patches as there
    # are. With kernel - 1 zeros more, these are the patches that cover the map.
    pad = module.projection.kernel_size[0] - 1
    return module.projection(F.pad(x, (0, pad, 0, pad)))


def attend_locally(lsa: LSA, x: Tensor, windows: Windows) -> Tensor:
    """Attention within windows of one size; (B, H * W, C) to (B, H * W, C).

    A window that juts out of the map never attends to what is outside.
    """
    c, (number, *_, length) = x.shape[2], windows.bias.shape
    qkv = lsa.qkv(x).index_select(1, windows.cut).unflatten(1, (number, length))
    qkv = qkv.unflatten(3, (3, lsa.num_heads, c // lsa.num_heads))
    q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)  # (B, windows, heads, L, C/heads)
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(3, 4) + windows.bias
    out = (logits.softmax(-1) @ v).transpose(2, 3).flatten(3).flatten(1, 2)
    return lsa.proj(out.index_select(1, windows.join))


def attend_globally(gsa: GSA, x: Tensor, size: Sequence[int]) -> Tensor:
    """Attention to the reduced map; (B, H * W, C) to (B, H * W, C)."""
    c, heads, projections = x.shape[-1], gsa.num_heads, gsa.attn
    q_weight, kv_weight = projections.in_proj_weight.split([c, 2 * c])
    q_bias, kv_bias = None, None
    if projections.in_proj_bias is not None:
        q_bias, kv_bias = projections.in_proj_bias.split([c, 2 * c])
    reduced = x
    if gsa.sr_ratio > 1:
        reduced = gsa.norm(to_tokens(gsa.sr(to_map(x, size))))
    q = F.linear(x, q_weight, q_bias).unflatten(2, (heads, c // heads))
    kv = F.linear(reduced, kv_weight, kv_bias).unflatten(2, (2, heads, c // heads))
    k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, M, C / heads)
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k, v)
    return projections.out_proj(out.transpose(1, 2).flatten(2))
