"""Adapt a config's model and test pipeline to the options of prediction."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose

from ..checkpoints.dataset_meta import innermost_dataset
from ..errors import SettingError
from ..models.segmentors.windows import is_pair
from .rows import RAW

SCOPES = ('', 'mmseg.', 'mmseg_twins.')
RESIZING = ('Resize', 'ResizeToMultiple', 'ResizeShortestEdge')
AUGMENTING = ('TestTimeAug', 'MultiScaleFlipAug')
LOADER = 'LoadImageFromFile'
# Reads all bands as they are in the file; needs GDAL's own Python package.
GDAL_LOADER = 'LoadSingleRSImageFromFile'


def extended_model(cfg: Config, asked: str) -> ConfigDict:
    """Return a copy of ``cfg.model`` with this package's segmentor.

    Its labels are mmsegmentation's up to ties, and its state dict is the same.

    Args:
        cfg: an mmsegmentation config.
        asked: the option that needs it, for the message.

    Raises:
        SettingError: the package does not have the config's type of segmentor.
    """
    model = copy.deepcopy(cfg.model)
    segmentor = model.get('module', model)
    replace_type(segmentor, 'EncoderDecoder', asked)
    if segmentor is not model:
        replace_type(model, 'SegTTAModel', asked)
    segmentor.test_cfg = {**(segmentor.get('test_cfg') or {}), 'keep_logits': False}
    return model


def replace_type(part: ConfigDict, name: str, asked: str) -> None:
    """Replace the type of a part of the model with this package's class of that name.

    Raises:
        SettingError: the part is neither this package's nor mmsegmentation's class.
    """
    kind = getattr(part.type, '__name__', part.type)
    if kind not in [f'{scope}{name}' for scope in SCOPES]:
        raise SettingError(
            f'{asked} needs a model of type {name}, but the config has {kind}'
        )
    part.type = f'mmseg_twins.{name}'


def slides_windows(
    *, full_resolution: bool, window: int | None, stride: int | None
) -> bool:
    """Return whether windows slide over images with these options of a Predictor."""
    return full_resolution or window is not None or stride is not None


def windows(
    cfg: Config, segmentor: Mapping, window: int | None, stride: int | None
) -> dict[str, tuple[int, ...]]:
    """Return the settings of sliding windows, as entries of ``test_cfg``.

    Args:
        cfg: an mmsegmentation config.
        segmentor: its segmentor's config.
        window: side of the windows in pixels; by default the crop size of tests or,
            without one, that of the training.
        stride: step between windows in pixels; two thirds of the window by default.

    Raises:
        SettingError: the config has no window size, or there would be gaps between
            windows.
    """
    test_cfg = segmentor.get('test_cfg') or {}
    if window is None:
        preprocessor = segmentor.get('data_preprocessor') or {}
        sizes = test_cfg.get('crop_size'), preprocessor.get('size'), training_size(cfg)
        size = tuple(next(filter(is_pair, sizes), ()))
        if not size:
            raise SettingError(
                'window: the config has neither model.test_cfg.crop_size nor '
                'model.data_preprocessor.size nor training images of a fixed size; '
                'give the side of the windows in pixels (--window)'
            )
    elif window < 1:
        raise SettingError(f'window={window}; give a positive number of pixels')
    else:
        size = window, window
    if stride is not None and not 1 <= stride <= min(size):
        raise SettingError(
            f'stride={stride}; give a number of pixels from 1 to {min(size)}, the side '
            'of the windows, so that they cover the image'
        )
    if stride is not None:
        steps = (stride, stride)
    elif window is None and is_pair(test_cfg.get('stride')):
        steps = tuple(test_cfg['stride'])
    else:
        steps = tuple(max(1, 2 * side // 3) for side in size)
    return {'crop_size': size, 'stride': steps}


def training_size(cfg: Config) -> tuple[int, int] | None:
    """Return height and width of training images; None if they vary or are unknown."""
    dataset = innermost_dataset(cfg, 'train_dataloader')
    size = None
    for step in dataset.get('pipeline') or ():
        name = step['type'].rpartition('.')[2]
        if name == 'RandomCrop':
            size = step['crop_size']
            size = (size, size) if isinstance(size, int) else size
        elif name == 'Resize' and is_pair(step.get('scale')):
            size = step['scale'][::-1]
        elif name in RESIZING or name == 'RandomResize':
            size = None
    return size


def check_values(
    bands: Sequence[int] | None,
    value_range: tuple[float, float] | str | None,
    *,
    slides: bool,
) -> None:
    """Check the options for the values of images.

    Raises:
        SettingError: a value is not allowed, or images are not predicted in windows.
    """
    if bands is not None and not (bands and min(bands) > 0):
        raise SettingError(
            f'bands={list(bands)}; give positive integers (--bands 1 2 3)'
        )
    if value_range not in (None, RAW) and not is_range(value_range):
        raise SettingError(
            f'value_range={value_range!r}; give two numbers, the lower one first '
            f'(--value-range 0 10000), or {RAW!r}'
        )
    if not slides and (bands or value_range):
        raise SettingError(
            'bands and value_range (--bands, --value-range, --raw-values) need sliding '
            'windows; add --full-resolution or --window PX'
        )


def is_range(value: object) -> bool:
    """Return whether a value is two numbers, the lower one first."""
    return (
        isinstance(value, Sequence)
        and len(value) == 2
        and all(isinstance(limit, (int, float)) for limit in value)
        and value[0] < value[1]
    )


def test_steps(cfg: Config, *loaders: str) -> list:
    """Return the steps of the test pipeline that do not load annotations.

    Args:
        cfg: an mmsegmentation config.
        loaders: allowed types of the first step.

    Raises:
        SettingError: there is no such pipeline.
    """
    loader = cfg.get('test_dataloader') or {}
    steps = loader.get('dataset', {}).get('pipeline')
    if not steps or steps[0]['type'] not in loaders:
        raise SettingError(
            'config: prediction needs a test_dataloader.dataset.pipeline that starts '
            f'with {" or ".join(loaders)}'
        )
    return [steps[0], *without_annotations(steps[1:])]


def build_pipelines(cfg: Config) -> tuple[Compose, Compose]:
    """Build two pipelines: the test pipeline's first step, which loads, and the rest.

    Raises:
        SettingError: the config has no test pipeline that loads image files.
    """
    loader, *rest = test_steps(cfg, LOADER)
    return Compose([loader]), Compose(rest)


def row_loader(cfg: Config) -> tuple[Compose | None, bool]:
    """Return how images other than TIFFs are read for sliding windows.

    Returns:
        The test pipeline's loader, or None if all images are read like TIFFs; and
        whether the model takes blue before red.

    Raises:
        SettingError: the test pipeline has steps that need whole images.
    """
    loader, *rest = test_steps(cfg, LOADER, GDAL_LOADER)
    names = [step['type'].rpartition('.')[2] for step in without_resizing(rest)]
    if more := [name for name in names if name != 'PackSegInputs']:
        raise SettingError(
            'predictions at full resolution (--full-resolution, --window, --stride) '
            f'read images row by row, but {more[0]} in the test pipeline needs whole '
            'images; remove it from test_dataloader.dataset.pipeline'
        )
    if loader['type'] == GDAL_LOADER:
        return None, False
    swaps = loader.get('imdecode_backend', 'cv2') != 'tifffile'
    return Compose([{**loader, 'to_float32': False}]), swaps


def without_annotations(steps: Sequence) -> list:
    """Return a pipeline without steps that load annotations, nested ones included."""
    kept = []
    for step in steps:
        if isinstance(step, (list, tuple)):
            if not (step := without_annotations(step)):
                continue
        elif step['type'].startswith('Load'):
            continue
        elif 'transforms' in step:
            step = {**step, 'transforms': without_annotations(step['transforms'])}
        kept.append(step)
    return kept


def without_resizing(steps: Sequence) -> list:
    """Return a pipeline without steps that resize images.

    Raises:
        SettingError: it has test-time augmentation.
    """
    names = [step['type'].rpartition('.')[2] for step in steps]
    if any(name in AUGMENTING for name in names):
        raise SettingError(
            'predictions at full resolution (--full-resolution, --window, --stride) '
            'cannot be combined with test-time augmentation (--tta), which resizes '
            'images; leave one of them out'
        )
    return [
        step for step, name in zip(steps, names, strict=True) if name not in RESIZING
    ]
