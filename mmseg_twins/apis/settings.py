"""Change a config's model and pipeline to what is asked of predictions."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from mmengine.config import Config, ConfigDict

from ..errors import SettingError
from ..models.segmentors.windows import is_pair

SCOPES = ('', 'mmseg.', 'mmseg_twins.')
RESIZING = ('Resize', 'ResizeToMultiple', 'ResizeShortestEdge')
AUGMENTING = ('TestTimeAug', 'MultiScaleFlipAug')


def extended_model(cfg: Config, asked: str) -> ConfigDict:
    """Return a copy of ``cfg.model`` with this package's segmentor.

    Its labels are mmsegmentation's up to ties, and its state dict is the same.

    Args:
        cfg: of mmsegmentation's kind.
        asked: what needs it, for the message.

    Raises:
        SettingError: the config's segmentor has no replacement.
    """
    model = copy.deepcopy(cfg.model)
    segmentor = model.get('module', model)
    replace_type(segmentor, 'EncoderDecoder', asked)
    if segmentor is not model:
        replace_type(model, 'SegTTAModel', asked)
    segmentor.test_cfg = {**(segmentor.get('test_cfg') or {}), 'keep_logits': False}
    return model


def replace_type(part: ConfigDict, name: str, asked: str) -> None:
    """Let a part of the model be this package's class of a name.

    Raises:
        SettingError: it is neither that nor mmsegmentation's.
    """
    kind = getattr(part.type, '__name__', part.type)
    if kind not in [f'{scope}{name}' for scope in SCOPES]:
        raise SettingError(
            f'{asked} needs a model of type {name}, and the config has {kind}'
        )
    part.type = f'mmseg_twins.{name}'


def windows(
    segmentor: Mapping, window: int | None, stride: int | None
) -> dict[str, tuple[int, ...]]:
    """Return the windows that slide over images, as entries of ``test_cfg``.

    Args:
        segmentor: its config, whose crop size is the default.
        window: their side in pixels.
        stride: the step between them in pixels; two thirds of them by default.

    Raises:
        SettingError: there is no window, or the windows leave pixels out.
    """
    test_cfg = segmentor.get('test_cfg') or {}
    if window is None:
        preprocessor = segmentor.get('data_preprocessor') or {}
        sizes = test_cfg.get('crop_size'), preprocessor.get('size')
        size = tuple(next(filter(is_pair, sizes), ()))
        if not size:
            raise SettingError(
                'window: the config has no model.test_cfg.crop_size and no '
                'model.data_preprocessor.size to take it from; give its side in pixels '
                '(--window)'
            )
    elif window < 1:
        raise SettingError(f'window={window}; give a positive number of pixels')
    else:
        size = window, window
    if stride is not None and not 1 <= stride <= min(size):
        raise SettingError(
            f"stride={stride}; give a number of pixels from 1 to the window's "
            f'{min(size)}, or pixels between windows would have no label'
        )
    if stride is not None:
        steps = (stride, stride)
    elif window is None and is_pair(test_cfg.get('stride')):
        steps = tuple(test_cfg['stride'])
    else:
        steps = tuple(max(1, 2 * side // 3) for side in size)
    return {'crop_size': size, 'stride': steps}


def without_resizing(steps: Sequence) -> list:
    """Return a pipeline without what resizes images.

    Raises:
        SettingError: it has views at several sizes.
    """
    names = [step['type'].rpartition('.')[2] for step in steps]
    if any(name in AUGMENTING for name in names):
        raise SettingError(
            'predictions at full resolution (--full-resolution, --window, --stride) do '
            'not go with test-time augmentation (--tta), which resizes images; leave '
            'one of them out'
        )
    return [
        step for step, name in zip(steps, names, strict=True) if name not in RESIZING
    ]
