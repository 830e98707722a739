"""The layers of a Twins stage besides attention (arXiv 2104.13840, section 3).

Patch embedding, conditional position encoding (arXiv 2102.10882) and the transformer
block, whose attention is an argument. Tokens are (B, H, W, C).
"""

from __future__ import annotations

from mmcv.cnn import Linear
from mmcv.cnn.bricks.transformer import FFN
from torch import Tensor, nn

from ... import ops
from .norm import build_norm


class PatchEmbedding(nn.Module):
    """Convolution over patches, then normalization.

    The map is zero-padded at its right and bottom until patches cover it
    ("corner" padding, as mmsegmentation's ``PatchEmbed``), so that no pixel of an
    odd-sized image is lost.

    Args:
        in_channels: channels of the input map.
        embed_dims: channels of the tokens.
        patch_size: the convolution's kernel.
        stride: the convolution's stride.
        norm_cfg: the normalization; ``eps`` is 1e-5 by default.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dims: int,
        *,
        patch_size: int,
        stride: int,
        norm_cfg: dict,
    ) -> None:
        super().__init__()
        self.projection = nn.Conv2d(in_channels, embed_dims, patch_size, stride=stride)
        self.norm = build_norm(norm_cfg, embed_dims, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """Embed a map (B, in_channels, H, W) as tokens (B, H', W', embed_dims)."""
        (kernel_size, _), (stride, _) = (
            self.projection.kernel_size,
            self.projection.stride,
        )
        x = ops.pad_to_patches(x, kernel_size, stride)
        return self.norm(self.projection(x).permute(0, 2, 3, 1))


class PositionEncoding(nn.Module):
    """Conditional position encoding: the tokens plus a depth-wise 3x3 convolution.

    Args:
        embed_dims: channels, C.
    """

    def __init__(self, embed_dims: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(embed_dims, embed_dims, 3, padding=1, groups=embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        return x + self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class MLP(FFN):
    """mmcv's ``FFN`` with GELU: same parameters, names and results.

    Args:
        embed_dims: channels, C.
        hidden_dims: channels between the two linear layers.
        drop_rate: dropout rate after each of them.
    """

    def __init__(
        self, embed_dims: int, hidden_dims: int, *, drop_rate: float = 0.0
    ) -> None:
        super().__init__(
            embed_dims,
            hidden_dims,
            act_cfg=dict(type='GELU'),
            ffn_drop=drop_rate,
            add_identity=False,
        )
        self.drop_rate = drop_rate

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C)."""
        first, second = self.layers[0][0], self.layers[1]
        replaced = type(first) is not Linear or type(second) is not Linear
        if replaced or (self.training and self.drop_rate):
            # The same as FFN.forward, which PyTorch 2.6 cannot compile.
            return self.layers(x)
        return ops.mlp(x, first.weight, first.bias, second.weight, second.bias)


class Block(nn.Module):
    """Pre-norm transformer block around a given attention.

    Stochastic depth acts once on each residual branch, here and nowhere else, and drops
    the two branches of a sample independently.

    Args:
        attention: maps (B, H, W, C) to (B, H, W, C).
        embed_dims: channels, C.
        mlp_ratio: hidden width of the MLP, in multiples of ``embed_dims``.
        norm_cfg: both normalizations; ``eps`` is 1e-6 by default.
        drop_rate: dropout rate after each layer of the MLP.
        drop_path_rate: probability with which a sample skips a branch.
    """

    def __init__(
        self,
        attention: nn.Module,
        embed_dims: int,
        *,
        mlp_ratio: float,
        norm_cfg: dict,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = build_norm(norm_cfg, embed_dims, eps=1e-6)
        self.attn = attention
        self.norm2 = build_norm(norm_cfg, embed_dims, eps=1e-6)
        self.ffn = MLP(
            embed_dims,
            int(mlp_ratio * embed_dims),
            drop_rate=drop_rate,
        )
        self.drop_path_rate = drop_path_rate

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        drop_rate = self.drop_path_rate if self.training else 0.0
        attn_kept, ffn_kept = ops.draw_kept(x, drop_rate, branches=2)
        x = ops.add_branch(x, self.attn(self.norm1(x)), attn_kept)
        return ops.add_branch(x, self.ffn(self.norm2(x)), ffn_kept)

    def extra_repr(self) -> str:
        """Return what ``print`` shows besides the layers."""
        return f'drop_path_rate={self.drop_path_rate:.3g}'
