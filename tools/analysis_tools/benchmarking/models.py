"""The implementations to compare, with the same weights.

``package`` is a config of this package, ``built-in`` the corresponding config of
mmsegmentation, ``timm`` the backbone of timm's classifier. The package gets the
built-in's LayerNorm epsilon, which costs nothing and makes outputs comparable.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from pathlib import Path

import mmseg.models
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS
from torch import Tensor, nn

import mmseg_twins
from benchmarking.cases import STRIDE, WINDOW, Case
from mmseg_twins.checkpoints.conversion import convert_state_dict
from mmseg_twins.checkpoints.models import ARCHS

PACKAGE, BUILTIN, TIMM = 'package', 'built-in', 'timm'
IMPLEMENTATIONS = (PACKAGE, BUILTIN, TIMM)
BUILTIN_EPS = 1e-5


def has_timm() -> bool:
    """Return whether timm and its dependencies can be imported."""
    try:
        importlib.import_module('timm')
    except ImportError:
        return False
    return True


def find_config(implementation: str, variant: str, head: str) -> Path:
    """Return the config file of the package or of the built-in.

    Args:
        implementation: ``PACKAGE`` or ``BUILTIN``.
        variant: the backbone, such as ``'svt-s'``.
        head: one of ``HEADS``; ``'none'`` finds a UPerNet with the backbone.

    Raises:
        FileNotFoundError: there is no such config.
    """
    kind = {'none': 'uperhead', 'fpn': 'fpn_fpnhead'}.get(head, head)
    if implementation == PACKAGE:
        root = Path(mmseg_twins.__file__).parent
        # In the source tree, or in an installed wheel.
        folders = [root.parent / 'configs', root / '.mim/configs']
        pattern = f'twins_{variant}_{kind}_*_512x512_*0k_ade20k.py'
    else:
        folders = [Path(mmseg.__file__).parent / '.mim/configs/twins']
        pattern = f'twins_{variant}_{kind}_*k_ade20k-512x512.py'
    for folder in folders:
        for file in sorted(folder.glob(pattern)):
            return file
    raise FileNotFoundError(
        f'there is no config {pattern} in {" or ".join(map(str, folders))}; reinstall '
        'the package'
    )


def read_config(implementation: str, variant: str, head: str) -> Config:
    """Read the config of an implementation, without pretrained weights."""
    cfg = Config.fromfile(find_config(implementation, variant, head))
    cfg.model.backbone.init_cfg = None
    if implementation == PACKAGE:
        cfg.model.backbone.norm_cfg = dict(type='LN', eps=BUILTIN_EPS)
    return cfg


def build_model(implementation: str, case: Case) -> tuple[nn.Module, Config | None]:
    """Build an implementation on the CPU; its weights are loaded later.

    Returns:
        A segmentor, or a backbone for head ``'none'``, and its config, which timm's
        backbone does not have.
    """
    if implementation == TIMM:
        return TimmBackbone(case.variant), None
    cfg = read_config(implementation, case.variant, case.head)
    if case.mode == 'slide':
        cfg.model.test_cfg = dict(
            mode='slide', crop_size=(WINDOW, WINDOW), stride=(STRIDE, STRIDE)
        )
    part = cfg.model.backbone if case.head == 'none' else cfg.model
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(part)
    # As mmengine's runner does if training is not distributed.
    return revert_sync_batchnorm(model), cfg


class TimmBackbone(nn.Module):
    """timm's Twins up to its last stage: four feature maps.

    For PCPVT, the maps equal the package's. timm's SVT has no normalization after
    stages and attends to the padding of its windows.
    """

    def __init__(self, variant: str) -> None:
        super().__init__()
        from timm import create_model

        family, size = variant.split('-')
        self.trunk = create_model(f'twins_{family}_{ARCHS[size]}', num_classes=0)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Turn images (B, 3, H, W) into maps (B, C_i, H_i, W_i)."""
        return self.trunk.forward_intermediates(x, intermediates_only=True)


def timm_is_same(case: Case) -> bool:
    """Return whether timm's results equal the built-in's; it drops partial patches."""
    whole = case.height % 32 == case.width % 32 == 0
    return case.variant.startswith('pcpvt') and whole


@torch.no_grad()
def make_weights(case: Case, seed: int) -> dict[str, Tensor]:
    """Return a state dict for all implementations of a case.

    Parameters get random values that reveal mistakes. With usual initial values, biases
    are 0, norms have no effect, and the branches of a transformer contribute so little
    that an error in one could be missed.
    """
    model, _ = build_model(PACKAGE, case)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(noise / math.sqrt(math.prod(parameter.shape[1:])))
        else:  # biases, and the factors of norms
            center = 0 if name.endswith('bias') else 1
            parameter.copy_(center + 0.1 * noise)
    return model.state_dict()


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load a state dict of :func:`make_weights` strictly.

    Raises:
        RuntimeError: names or shapes differ.
    """
    if not isinstance(model, TimmBackbone):
        model.load_state_dict(weights, strict=True)
        return
    official, _ = convert_state_dict(weights, to='official')
    # timm's SVT has no stage norms; the classifier's norm comes after the maps.
    wanted = {k: v for k, v in official.items() if not k.startswith('norm_list.')}
    missing, unexpected = model.trunk.load_state_dict(wanted, strict=False)
    odd = {*missing, *unexpected} - {'norm.weight', 'norm.bias'}
    if odd:
        raise RuntimeError(f'unexpected or missing: {", ".join(sorted(odd))}')
