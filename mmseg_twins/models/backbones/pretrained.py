"""Check pretrained weights, and adapt them to other numbers of image channels.

mmengine loads ``init_cfg=dict(type='Pretrained', ...)`` without strictness: a file
whose names do not fit leaves random weights and a line in the log. Here it is an
error, except that weights for RGB images fit images of any number of channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.model.weight_init import PretrainedInit
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from ...errors import CheckpointError, SettingError
from ...state_dicts import compare, shape_of

# May be missing: ImageNet classifiers do not have SVT's norms after the stages.
ALLOWED_MISSING = 'norm_list.'
FIRST_CONV = 'patch_embeds.0.projection.weight'
RGB = 3


@contextmanager
def pretrained_input(backbone: BaseModule) -> Iterator[None]:
    """Adapt the first convolution of loaded weights to the number of channels."""
    if backbone.in_channels == RGB:
        yield
        return
    projection = backbone.patch_embeds[0].projection
    hook = projection.register_load_state_dict_pre_hook(fit_input)
    try:
        yield
    finally:
        hook.remove()


def fit_input(module: nn.Conv2d, state: dict[str, Tensor], prefix: str, *_) -> None:
    """Adapt a convolution's weight for RGB images in a state dict."""
    name = f'{prefix}weight'
    if name in state and state[name].shape[1] == RGB:
        state[name] = with_channels(state[name], module.in_channels)
        print_log(
            f'{FIRST_CONV}: the weights for {RGB} image channels are repeated and '
            f'scaled for {module.in_channels}',
            logger='current',
        )


def with_channels(weight: Tensor, channels: int) -> Tensor:
    """Return a convolution's weight for another number of input channels.

    As in timm's ``adapt_input_conv``, a single channel gets the sum, and more get the
    weights in turns, scaled so that images with equal channels keep their features.

    Args:
        weight: for RGB images, (out, 3, height, width).
        channels: number of input channels.
    """
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    repeats = -(-channels // RGB)
    return weight.repeat(1, repeats, 1, 1)[:, :channels] * (RGB / channels)


def check_pretrained(backbone: BaseModule) -> None:
    """Check every ``Pretrained`` entry of a backbone's ``init_cfg``.

    Raises:
        CheckpointError: a checkpoint cannot be found or read.
        SettingError: a checkpoint does not have the backbone's names and shapes.
    """
    entries = backbone.init_cfg or []
    for entry in [entries] if isinstance(entries, dict) else entries:
        if entry['type'] in ('Pretrained', PretrainedInit):
            check_checkpoint(backbone, entry['checkpoint'], entry.get('prefix'))


def check_checkpoint(backbone: BaseModule, source: str, prefix: str | None) -> None:
    """Check one checkpoint, as :func:`check_pretrained` says."""
    if '://' not in str(source) and not Path(source).is_file():
        raise CheckpointError(
            f'init_cfg.checkpoint={str(source)!r} is not a file; give the path or URL '
            'of a checkpoint, a name such as twins://svt-s, or init_cfg=None for '
            'random weights'
        )
    loaded = CheckpointLoader.load_checkpoint(str(source), map_location='cpu')
    prefix = f'{prefix.rstrip(".")}.' if prefix else ''
    found = {
        name.removeprefix(prefix): value
        for name, value in loaded.get('state_dict', loaded).items()
        if name.startswith(prefix) and hasattr(value, 'shape')
    }
    first = found.get(FIRST_CONV)
    if first is not None and first.ndim == 4 and first.shape[1] == RGB:
        found[FIRST_CONV] = with_channels(first, backbone.in_channels)
    differences = compare(backbone.state_dict(), found)
    missing = [
        name for name in differences.missing if not name.startswith(ALLOWED_MISSING)
    ]
    model = type(backbone).__name__
    if missing:
        lacks = f'lacks {len(missing)} tensors of this {model} (first: {missing[0]!r})'
        if differences.nothing_fits:
            lacks = f'has none of the tensors of this {model}'
        raise SettingError(
            f'init_cfg.checkpoint={str(source)!r} {lacks}; convert a checkpoint of '
            'another layout with tools/model_converters/twins2mmseg.py, and name the '
            "part of a segmentor with init_cfg=dict(..., prefix='backbone.')"
        )
    for name, (given, expected) in differences.mismatched.items():
        raise SettingError(
            f'init_cfg.checkpoint={str(source)!r} is of another size: {name!r} is '
            f'{shape_of(given)} in the checkpoint and {shape_of(expected)} in this '
            f'{model}; give a checkpoint of the same arch'
        )
