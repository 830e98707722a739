"""The Twins backbones PCPVT and SVT (arXiv 2104.13840): pyramids of four stages.

A stage consists of patch embedding, block 0, conditional position encoding, the other
blocks, and in SVT a LayerNorm. PCPVT's blocks use global sub-sampled attention (section
3.1); SVT's alternate between locally-grouped and global sub-sampled attention (3.2).

Results are those of the official ``segmentation/gvt.py`` with its padding mask fixed
(see :mod:`.attention`). Names and shapes of the parameters are those of
mmsegmentation's built-in ``PCPVT`` and ``SVT``, whose checkpoints load strictly.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from mmengine.model import BaseModule
from mmengine.model.weight_init import constant_init, normal_init, trunc_normal_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ... import ops
from ...errors import SettingError
from ...registry import MODELS
from .attention import GSA, LSA
from .blocks import Block, PatchEmbedding, PositionEncoding
from .norm import build_norm
from .pretrained import check_pretrained, pretrained_input
from .sizes import PCPVT_SIZES, SVT_SIZES, Sizes, choose_sizes


class Twins(BaseModule):
    """Base class of PCPVT and SVT, which differ in their tables of sizes.

    Args:
        arch: ``'small'``, ``'base'`` or ``'large'``. Without it, the sizes are the
            defaults of mmsegmentation's built-in class, meant to be overridden.
        in_channels: channels of the image.
        out_indices: stages whose maps are returned, counted from 0; None for all.
        norm_cfg: all normalizations. A LayerNorm without ``eps`` gets the official
            values: 1e-6 in blocks and after stages, 1e-5 in patch embeddings and
            inside GSA. mmsegmentation uses ``dict(type='LN', eps=1e-5)``.
        norm_after_stage: whether each stage ends with a normalization.
        drop_rate: dropout rate of tokens, projections and MLPs.
        attn_drop_rate: dropout rate of attention weights.
        drop_path_rate: stochastic depth rate of the last block; rates grow linearly
            from 0 at the first block and apply once to each residual branch.
        frozen_stages: -1 freezes nothing, 0 the first patch embedding, n the first
            n stages: no gradients, and evaluation mode while the model trains.
        norm_eval: whether normalizations stay in evaluation mode while the model
            trains (LayerNorm is the same in both).
        with_cp: whether each block's activations are recomputed in the backward pass
            (activation checkpointing) instead of being kept.
        pretrained: a checkpoint; deprecated, use ``init_cfg``.
        init_cfg: initialization as in mmengine, such as
            ``dict(type='Pretrained', checkpoint=PATH_OR_URL)``.
        given_sizes: fields of :class:`~.sizes.Sizes` that override those of ``arch``:
            embed_dims, num_heads, mlp_ratios, depths, sr_ratios, window_sizes (SVT),
            patch_sizes, strides (one value per stage), qkv_bias.

    Raises:
        TypeError: an argument does not exist.
        SettingError: the value of an argument is not allowed; the message names it.
    """

    size_table: ClassVar[Mapping[str | None, Sizes]]

    def __init__(
        self,
        *,
        arch: str | None = None,
        in_channels: int = 3,
        out_indices: Sequence[int] | None = None,
        norm_cfg: Mapping = dict(type='LN'),
        norm_after_stage: bool = False,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        pretrained: str | None = None,
        init_cfg: dict | list[dict] | None = None,
        **given_sizes: Any,
    ) -> None:
        super().__init__(init_cfg=init_cfg_with_pretrained(init_cfg, pretrained))
        sizes = choose_sizes(self.size_table, arch, given_sizes)
        check_rates(
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            drop_path_rate=drop_path_rate,
        )
        if in_channels < 1:
            raise SettingError(f'in_channels={in_channels!r}; give 1 or more')
        self.sizes = sizes
        self.in_channels = in_channels
        self.out_indices = choose_out_indices(out_indices, sizes.num_stages)
        self.frozen_stages = check_frozen_stages(frozen_stages, sizes.num_stages)
        self.norm_eval = norm_eval
        self.with_cp = with_cp

        self.patch_embeds = nn.ModuleList()
        self.layers = nn.ModuleList()
        self.position_encodings = nn.ModuleList()
        self.position_drop = nn.Dropout(drop_rate)
        self.norm_list = nn.ModuleList()
        path_rates = np.linspace(0, drop_path_rate, sum(sizes.depths)).tolist()
        for stage, dims in enumerate(sizes.embed_dims):
            self.patch_embeds.append(
                PatchEmbedding(
                    sizes.embed_dims[stage - 1] if stage else in_channels,
                    dims,
                    patch_size=sizes.patch_sizes[stage],
                    stride=sizes.strides[stage],
                    norm_cfg=norm_cfg,
                )
            )
            self.layers.append(
                nn.ModuleList(
                    Block(
                        build_attention(
                            sizes,
                            stage,
                            index,
                            norm_cfg=norm_cfg,
                            attn_drop_rate=attn_drop_rate,
                            drop_rate=drop_rate,
                        ),
                        dims,
                        mlp_ratio=sizes.mlp_ratios[stage],
                        norm_cfg=norm_cfg,
                        drop_rate=drop_rate,
                        drop_path_rate=path_rates[sum(sizes.depths[:stage]) + index],
                    )
                    for index in range(sizes.depths[stage])
                )
            )
            self.position_encodings.append(PositionEncoding(dims))
            if norm_after_stage:
                self.norm_list.append(build_norm(norm_cfg, dims, eps=1e-6))
        self._freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the pyramid of feature maps.

        Args:
            x: images, (B, in_channels, H, W).

        Returns:
            A map (B, embed_dims[i], H_i, W_i) for each stage i of ``out_indices``;
            with the usual strides H_i = ceil(H / 2 ** (i + 2)).

        Raises:
            SettingError: a side of the image is too short for the last stages.
        """
        if min(x.shape[2:]) < self.sizes.min_image_side:
            raise SettingError(
                f'the image is {x.shape[2]}x{x.shape[3]} px (height x width); both '
                f'sides need at least {self.sizes.min_image_side} px'
            )
        maps = []
        for stage, blocks in enumerate(self.layers):
            x = self.position_drop(self.patch_embeds[stage](x))
            for index, block in enumerate(blocks):
                if self.with_cp and x.requires_grad:
                    x = checkpoint(block, x, use_reentrant=False)
                else:
                    x = block(x)
                if index == 0:
                    x = self.position_encodings[stage](x)
            if self.norm_list:
                x = self.norm_list[stage](x)
            x = ops.contiguous_gradient(x)
            x = x.permute(0, 3, 1, 2)  # (B, C, H, W), in channels_last memory
            if stage in self.out_indices:
                maps.append(x)
        return tuple(maps)

    def init_weights(self) -> None:
        """Initialize as the official code does, then as ``init_cfg`` says.

        Raises:
            CheckpointError: the checkpoint in ``init_cfg`` cannot be read.
            SettingError: the checkpoint does not have this backbone's weights.
        """
        if not self.is_init:
            for module in self.modules():
                init_as_official(module)
            check_pretrained(self)
        with pretrained_input(self):
            super().init_weights()

    def train(self, mode: bool = True) -> Twins:
        """Set training or evaluation mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        self._freeze()
        if self.norm_eval:
            for name, module in self.named_modules():
                if name.rpartition('.')[2].startswith('norm'):
                    module.eval()
        return self

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen = [self.patch_embeds[: max(self.frozen_stages, 1)]]
        for parts in (self.layers, self.position_encodings, self.norm_list):
            frozen.append(parts[: self.frozen_stages])
        for part in frozen:
            part.eval().requires_grad_(False)


@MODELS.register_module()
class PCPVT(Twins):
    """Twins-PCPVT: a pyramid with global sub-sampled attention in every block.

    For the arguments see :class:`Twins`.

    Example:
        >>> import torch
        >>> from mmseg_twins.models.backbones import PCPVT
        >>> maps = PCPVT(arch='small')(torch.rand(1, 3, 64, 96))
        >>> [tuple(m.shape) for m in maps]
        [(1, 64, 16, 24), (1, 128, 8, 12), (1, 320, 4, 6), (1, 512, 2, 3)]
    """

    size_table = PCPVT_SIZES


@MODELS.register_module()
class SVT(Twins):
    """Twins-SVT: locally-grouped attention in even blocks, global in odd ones.

    For the arguments see :class:`Twins`; ``windiow_sizes``, the built-in's spelling
    of ``window_sizes``, is deprecated.

    Example:
        >>> import torch
        >>> from mmseg_twins.models.backbones import SVT
        >>> maps = SVT(arch='small')(torch.rand(1, 3, 64, 96))
        >>> [tuple(m.shape) for m in maps]
        [(1, 64, 16, 24), (1, 128, 8, 12), (1, 256, 4, 6), (1, 512, 2, 3)]
    """

    size_table = SVT_SIZES

    def __init__(
        self,
        *,
        drop_path_rate: float = 0.2,
        norm_after_stage: bool = True,
        windiow_sizes: Sequence[int] | None = None,
        **kwargs,
    ) -> None:
        if windiow_sizes is not None:
            if 'window_sizes' in kwargs:
                raise SettingError(
                    'window_sizes and windiow_sizes are the same argument; give '
                    'window_sizes only'
                )
            warnings.warn(
                'windiow_sizes is deprecated; write window_sizes',
                DeprecationWarning,
                stacklevel=2,
            )
            kwargs['window_sizes'] = windiow_sizes
        super().__init__(
            drop_path_rate=drop_path_rate, norm_after_stage=norm_after_stage, **kwargs
        )


def build_attention(
    sizes: Sizes, stage: int, index: int, *, norm_cfg: dict, **rates: float
) -> LSA | GSA:
    """Return the attention of a stage's block; SVT's even blocks are local."""
    dims, heads = sizes.embed_dims[stage], sizes.num_heads[stage]
    if sizes.window_sizes and index % 2 == 0:
        window_size = sizes.window_sizes[stage]
        return LSA(dims, heads, window_size, qkv_bias=sizes.qkv_bias, **rates)
    return GSA(
        dims,
        heads,
        sizes.sr_ratios[stage],
        norm_cfg=norm_cfg,
        qkv_bias=sizes.qkv_bias,
        **rates,
    )


def init_as_official(module: nn.Module) -> None:
    """Initialize one layer as ``_init_weights`` of the official ``gvt.py`` does."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.MultiheadAttention):
        # The official code keeps these in linear layers.
        trunc_normal_(module.in_proj_weight, std=0.02)
        if module.in_proj_bias is not None:
            nn.init.zeros_(module.in_proj_bias)
    elif isinstance(module, nn.LayerNorm):
        constant_init(module, val=1, bias=0)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        normal_init(module, std=math.sqrt(2 / fan_out))


def init_cfg_with_pretrained(
    init_cfg: dict | list[dict] | None, pretrained: str | None
) -> dict | list[dict] | None:
    """Return ``init_cfg``, or the equivalent of the deprecated ``pretrained``."""
    entries = init_cfg if isinstance(init_cfg, list) else [init_cfg]
    if init_cfg is not None and not all(
        isinstance(entry, dict) and 'type' in entry for entry in entries
    ):
        raise SettingError(
            f'init_cfg={init_cfg!r}; give None, or a dict with a type such as '
            "dict(type='Pretrained', checkpoint=PATH_OR_URL), or a list of such"
        )
    if pretrained is None:
        return init_cfg
    if init_cfg is not None:
        raise SettingError(
            f'pretrained={pretrained!r} and init_cfg={init_cfg!r} exclude each other; '
            'give init_cfg only'
        )
    warnings.warn(
        "pretrained is deprecated; give init_cfg=dict(type='Pretrained', "
        f'checkpoint={pretrained!r})',
        DeprecationWarning,
        stacklevel=4,
    )
    return dict(type='Pretrained', checkpoint=pretrained)


def choose_out_indices(
    out_indices: Sequence[int] | None, num_stages: int
) -> tuple[int, ...]:
    """Return the checked stages; all for None."""
    if out_indices is None:
        return tuple(range(num_stages))
    indices = tuple(out_indices) if isinstance(out_indices, Sequence) else ()
    if not indices or not all(index in range(num_stages) for index in indices):
        raise SettingError(
            f'out_indices={out_indices!r}; give a list of stages, each from 0 to '
            f'{num_stages - 1}'
        )
    return indices


def check_frozen_stages(frozen_stages: int, num_stages: int) -> int:
    """Return the checked ``frozen_stages``."""
    if not -1 <= frozen_stages <= num_stages:
        raise SettingError(
            f'frozen_stages={frozen_stages}; give -1 (nothing) to {num_stages} (all)'
        )
    return frozen_stages


def check_rates(**rates: float) -> None:
    """Check that dropout rates lie in [0, 1)."""
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise SettingError(f'{name}={rate!r}; give a rate from 0 to below 1')
