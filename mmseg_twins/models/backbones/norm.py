"""Normalization layers on (B, H, W, C) tokens."""

from __future__ import annotations

from mmcv.cnn import build_norm_layer
from torch import nn

from ...errors import SettingError

CHANNEL_FIRST = ('BN', 'BN1d', 'BN2d', 'BN3d', 'SyncBN', 'MMSyncBN', 'GN', 'IN',
                 'IN1d', 'IN2d', 'IN3d', 'LN2d')  # fmt: skip


def build_norm(norm_cfg: dict, embed_dims: int, *, eps: float) -> nn.Module:
    """Build the normalization of ``embed_dims`` channels, the tokens' last axis.

    Args:
        norm_cfg: as for mmcv's ``build_norm_layer``, including ``requires_grad``.
        embed_dims: channels, C.
        eps: the official code's value, the default of a LayerNorm.

    Raises:
        SettingError: ``norm_cfg`` has no type, or one that expects channels first.
    """
    if not isinstance(norm_cfg, dict) or 'type' not in norm_cfg:
        raise SettingError(
            f"norm_cfg={norm_cfg!r} is not a config with a 'type'; "
            "give, for example, dict(type='LN')"
        )
    if norm_cfg['type'] in CHANNEL_FIRST:
        raise SettingError(
            f'norm_cfg={norm_cfg!r} normalizes channel-first maps, but the tokens are '
            "channel-last; give type='LN'"
        )
    if norm_cfg['type'] == 'LN':
        norm_cfg = {'eps': eps, **norm_cfg}
    return build_norm_layer(norm_cfg, embed_dims)[1]
