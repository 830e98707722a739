"""The implementations that are compared, with the same weights.

``package`` is a recipe of this package, ``built-in`` the config of mmsegmentation
that it corresponds to, ``timm`` timm's classifier trunk. The package gets the
built-in's LayerNorm epsilon, which costs nothing and makes outputs comparable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import mmseg.models
import torch
from mmengine.config import Config
from mmengine.model import BaseModule, revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS
from torch import Tensor, nn

import mmseg_twins
from benchmarking.cases import Case
from benchmarking.errors import BenchmarkError
from mmseg_twins.checkpoints.conversion import convert_state_dict
from mmseg_twins.checkpoints.models import ARCHS

PACKAGE, BUILTIN, TIMM = 'package', 'built-in', 'timm'
BUILTIN_EPS = 1e-5


def find_config(implementation: str, variant: str, head: str) -> Path:
    """The config file of an implementation.

    Args:
        implementation: ``PACKAGE`` or ``BUILTIN``.
        variant: the backbone.
        head: the head; ``'none'`` takes the file that the backbone of UPerNet is in.

    Raises:
        BenchmarkError: there is none, or there are several.
    """
    kind = {'none': 'uperhead', 'fpn': 'fpn_fpnhead'}.get(head, head)
    if implementation == PACKAGE:
        root = Path(mmseg_twins.__file__).parent
        # The source tree, then what an installed wheel carries.
        folders = [root.parent / 'configs', root / '.mim/configs']
        pattern = f'twins_{variant}_{kind}_*_512x512_*0k_ade20k.py'
    else:
        folders = [Path(mmseg.__file__).parent / '.mim/configs/twins']
        pattern = f'twins_{variant}_{kind}_*k_ade20k-512x512.py'
    for folder in folders:
        files = sorted(folder.glob(pattern))
        if len(files) == 1:
            return files[0]
        if files:
            raise BenchmarkError(f'{folder} holds several files {pattern}')
    raise BenchmarkError(
        f'there is no config {pattern} in {" or ".join(map(str, folders))}; is the '
        'installation complete?'
    )


def read_config(implementation: str, variant: str, head: str) -> Config:
    """The config of an implementation, ready to be built without a download."""
    cfg = Config.fromfile(find_config(implementation, variant, head))
    cfg.model.backbone.init_cfg = None
    if implementation == PACKAGE:
        cfg.model.backbone.norm_cfg = dict(type='LN', eps=BUILTIN_EPS)
    return cfg


def build_model(implementation: str, case: Case) -> tuple[nn.Module, Config | None]:
    """Builds an implementation on the CPU, with weights that do not matter.

    Args:
        implementation: ``PACKAGE``, ``BUILTIN`` or ``TIMM``.
        case: what it is for.

    Returns:
        A segmentor, or a backbone for head ``'none'``; and the config that it comes
        from, which timm's has not.

    Raises:
        BenchmarkError: the implementation has no such model.
    """
    if implementation == TIMM:
        return TimmBackbone(case.variant), None
    cfg = read_config(implementation, case.variant, case.head)
    part = cfg.model.backbone if case.head == 'none' else cfg.model
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(part)
    # As mmengine's runner does where training is not distributed.
    return revert_sync_batchnorm(model), cfg


class TimmBackbone(nn.Module):
    """timm's Twins, as far as its last stage: four feature maps.

    For PCPVT these are the package's maps. timm's SVT has no normalization after
    stages and attends to the padding of its windows.

    Args:
        variant: such as ``'svt-s'``.
    """

    def __init__(self, variant: str) -> None:
        super().__init__()
        family, size = variant.split('-')
        self.trunk = require_timm().create_model(
            f'twins_{family}_{ARCHS[size]}', num_classes=0
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) to maps (B, C_i, H_i, W_i)."""
        return self.trunk.forward_intermediates(x, intermediates_only=True)


def require_timm() -> ModuleType:
    """Imports timm.

    Raises:
        BenchmarkError: it is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise BenchmarkError(f'timm cannot be imported ({error})') from None
    return timm


def one_line(error: Exception) -> str:
    """An exception's kind, and the first line that it has to say."""
    lines = str(error).strip().splitlines()
    name = type(error).__name__
    return f'{name}: {lines[0][:200]}' if lines else name


def is_same_function(implementation: str, case: Case) -> bool:
    """Whether an implementation is meant to compute what the built-in does."""
    if implementation != TIMM:
        return True
    # timm drops pixels that do not fill a patch.
    whole = case.height % 32 == case.width % 32 == 0
    return case.variant.startswith('pcpvt') and whole


@torch.no_grad()
def randomize(model: nn.Module, seed: int) -> None:
    """Gives every parameter a value at which mistakes show.

    At initialization biases are 0, norms do nothing, and the branches of a
    transformer add so little that a wrong one could be missed.

    Args:
        model: changed in place.
        seed: of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(noise / math.sqrt(math.prod(parameter.shape[1:])))
        else:  # biases, and the factors of norms
            center = 0 if name.endswith('bias') else 1
            parameter.copy_(center + 0.1 * noise)


def make_weights(case: Case, seed: int) -> dict[str, Tensor]:
    """The state dict that all implementations of a case load."""
    model, _ = build_model(PACKAGE, case)
    randomize(model, seed)
    return model.state_dict()


def load_weights(
    model: BaseModule | TimmBackbone, weights: Mapping[str, Tensor]
) -> None:
    """Loads a state dict of :func:`make_weights`, all of it.

    Raises:
        BenchmarkError: names or shapes differ.
    """
    try:
        if isinstance(model, TimmBackbone):
            load_into_timm(model, weights)
        else:
            model.load_state_dict(weights, strict=True)
    except (RuntimeError, ValueError) as error:
        raise BenchmarkError(
            f'the weights do not fit {type(model).__name__} ({one_line(error)})'
        ) from None


def load_into_timm(model: TimmBackbone, weights: Mapping[str, Tensor]) -> None:
    """Loads a backbone's weights under timm's names.

    Raises:
        ValueError: timm's model has other names than is known of it.
    """
    official, _ = convert_state_dict(weights, to='official')
    named = {
        name: value
        for name, value in official.items()
        if not name.startswith('norm_list.')
    }
    missing, unexpected = model.trunk.load_state_dict(named, strict=False)
    # The classifier's last norm, which comes after the maps.
    odd = {*missing, *unexpected} - {'norm.weight', 'norm.bias'}
    if odd:
        raise ValueError(f'unexpected or missing: {", ".join(sorted(odd))}')


def count_parameters(model: nn.Module) -> int:
    """Numbers that training changes."""
    return sum(parameter.numel() for parameter in model.parameters())
