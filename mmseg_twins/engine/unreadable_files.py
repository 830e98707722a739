"""Names images and masks that cannot be read, and lets a training go on without them.

mmengine 0.10.7 ends a training at such a file, without the name of an empty one; with
``ignore_empty=True`` it silently tries up to a thousand other samples. A mask whose
size differs from its image's ends in an error about tensors, if at all.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmcv.transforms import TestTimeAug
from mmengine.dataset import BaseDataset, Compose
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from PIL import UnidentifiedImageError

from ..checkpoints.reading import one_line
from ..errors import DataError, SettingError
from ..registry import HOOKS


@HOOKS.register_module()
class UnreadableFiles(Hook):
    """Skips training samples that cannot be read, and names their files once.

    These are files that are missing, empty, damaged or not images, and masks whose size
    differs from their image's. The dataset draws another sample instead, with
    ``ExactResume`` the same one in a resumed training. In a validation or a test, whose
    results would change, such a file is an error.

    OpenCV reports truncated JPEG files since version 5; earlier versions fill the rest
    with gray.

    Args:
        max_in_a_row: number of unreadable samples in a row, such as after a disk
            failure, at which a process stops the training; 0 stops it at the first.

    Raises:
        DataError: that many samples in a row cannot be read, or a file of a validation
            or test cannot.
        SettingError: ``max_in_a_row`` is not a number of samples.

    Example:
        >>> default_hooks = dict(unreadable=dict(type='mmseg_twins.UnreadableFiles'))
    """

    def __init__(self, max_in_a_row: int = 10) -> None:
        if not isinstance(max_in_a_row, int) or max_in_a_row < 0:
            raise SettingError(
                f'UnreadableFiles: max_in_a_row={max_in_a_row!r}; give 0 or a positive '
                'integer'
            )
        self.max_in_a_row = max_in_a_row

    def before_train(self, runner: Runner) -> None:
        """Watch the training data, before ``ExactResume`` makes its loader."""
        for dataset in datasets(runner.train_dataloader.dataset):
            skipped = torch.zeros(len(dataset), dtype=torch.bool).share_memory_()
            watch(dataset, skipped, self.max_in_a_row)

    def before_val(self, runner: Runner) -> None:
        """Watch the validation data."""
        for dataset in datasets(runner.val_dataloader.dataset):
            watch(dataset)

    def before_test(self, runner: Runner) -> None:
        """Watch the test data."""
        for dataset in datasets(runner.test_dataloader.dataset):
            watch(dataset)


def datasets(dataset: Any) -> Iterator[BaseDataset]:
    """Yield a dataset, or the datasets that it wraps."""
    if isinstance(dataset, BaseDataset):
        yield dataset
        return
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    for one in inner:
        if one is not None:
            yield from datasets(one)


def watch(
    dataset: BaseDataset, skipped: torch.Tensor | None = None, max_in_a_row: int = 0
) -> None:
    """Replace a dataset's pipeline; for the arguments see :class:`WatchedPipeline`."""
    if not isinstance(dataset.pipeline, WatchedPipeline):
        dataset.pipeline = WatchedPipeline(dataset.pipeline, skipped, max_in_a_row)


class WatchedPipeline(Compose):
    """A pipeline whose errors name the file that a transform cannot read.

    Args:
        skipped: for each sample, whether it has been skipped; in memory that all
            workers share, so that each file is named once. None if none may be skipped.
        max_in_a_row: number of samples in a row at which to raise an error.
    """

    def __init__(
        self,
        pipeline: Compose,
        skipped: torch.Tensor | None = None,
        max_in_a_row: int = 0,
    ) -> None:
        super().__init__(pipeline.transforms)
        self.skipped = skipped
        self.max_in_a_row = max_in_a_row
        self.in_a_row = 0
        for transform in self.transforms:
            if isinstance(transform, TestTimeAug):
                transform.subroutines = list(
                    map(WatchedPipeline, transform.subroutines)
                )

    def __call__(self, data: dict) -> dict | None:
        """Return the sample, or None if the dataset is to draw another one.

        Raises:
            DataError: a file cannot be read, and no more samples may be skipped.
        """
        index = data.get('sample_idx')
        try:
            result = self._load(data)
        except DataError as error:
            self.in_a_row += 1
            if self.skipped is None or self.max_in_a_row == 0:
                raise
            if self.in_a_row >= self.max_in_a_row:
                raise DataError(
                    f'{self.in_a_row} samples in a row cannot be read, the last one '
                    f'because {error}; check that the disk is there'
                ) from error
            if not self.skipped[index]:
                self.skipped[index] = True
                # All processes but the first show errors only.
                print_log(
                    f'{error}: another sample takes its place',
                    logger='current',
                    level=logging.ERROR,
                )
            return None
        self.in_a_row = 0
        return result

    def _load(self, data: dict) -> dict | None:
        """Transform a sample; raise ``DataError`` if a file cannot be read."""
        result: dict | None = data
        for transform in self.transforms:
            given = result
            path = file_to_read(transform, given)
            try:
                result = transform(given)
            except (DataError, MemoryError):
                raise
            except Exception as error:
                if path is None:
                    raise
                raise DataError(
                    f'{path} cannot be read ({reason(path, error)})'
                ) from error
            if result is None:
                if path is not None:  # from transforms with ignore_empty
                    raise DataError(f'{path} cannot be read ({reason(path)})')
                return None
            if path is not None:
                check_size(path, result)
        return result


def file_to_read(transform: object, data: dict) -> str | None:
    """Return the file that a transform is about to read, if any."""
    if 'img' not in data:
        return data.get('img_path')
    is_loader = type(transform).__name__.startswith('Load')
    return data.get('seg_map_path') if is_loader else None


def reason(path: str, error: Exception | None = None) -> str:
    """Return why a file cannot be read."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if Path(path).is_file() and Path(path).stat().st_size == 0:
        return 'it is empty'
    # What mmcv and mmsegmentation raise if OpenCV or Pillow fails.
    kinds = (AssertionError, AttributeError, UnidentifiedImageError)
    if error is None or isinstance(error, kinds):
        return 'it is not an image, or damaged'
    return one_line(error)


def check_size(path: str, data: dict) -> None:
    """Check that a mask has the size of its image.

    Raises:
        DataError: it does not.
    """
    mask, image = data.get('gt_seg_map'), data.get('ori_shape', ())
    if path != data.get('seg_map_path') or mask is None or len(image) != 2:
        return
    if mask.shape != tuple(image):
        height, width = mask.shape[:2]
        raise DataError(
            f'{path} cannot be used (it is {width}x{height} px, its image '
            f'{image[1]}x{image[0]})'
        )
