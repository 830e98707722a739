"""Stops a training at labels outside the model's classes.

On a GPU such a label fails a device-side assertion, which names neither the label nor
the file, nor even the line of the program.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from ..errors import SettingError
from ..registry import HOOKS


@HOOKS.register_module()
class CheckLabels(Hook):
    """Checks the number of classes before a training, and the labels of each batch.

    Labels are checked on the CPU, where the data loader leaves them.

    Raises:
        SettingError: the dataset and a head have different numbers of classes, or a
            pixel's label is neither below that number nor the ignored one.
    """

    def before_train(self, runner: Runner) -> None:
        """Compare the dataset's classes with the heads' ``num_classes``."""
        dataset = runner.train_dataloader.dataset
        if not isinstance(dataset, BaseDataset):
            return
        classes = dataset.metainfo.get('classes')
        for name, head in heads(runner.model):
            if classes is not None and head.num_classes != len(classes):
                raise SettingError(
                    f'CheckLabels: the dataset has {len(classes)} classes, but '
                    f'model.{name}.num_classes is {head.num_classes}; make them equal'
                )

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """Check the labels of a batch."""
        name, head = next(heads(runner.model))
        for sample in (data_batch or {}).get('data_samples', ()):
            labels = sample.gt_sem_seg.data
            wrong = labels[(labels < 0) | (labels >= head.num_classes)]
            wrong = wrong[wrong != head.ignore_index]
            if wrong.numel():
                values = sorted(set(wrong.tolist()))
                raise SettingError(
                    f'CheckLabels: {sample.metainfo.get("seg_map_path")} has the label '
                    f'{", ".join(map(str, values[:8]))} in {wrong.numel()} pixels, as '
                    f'training reads it (reduce_zero_label='
                    f'{sample.metainfo.get("reduce_zero_label")}), but model.{name} '
                    f'has {head.num_classes} classes, 0 to {head.num_classes - 1}, '
                    f'and ignores {head.ignore_index}; '
                    '`mmseg-twins check-dataset CONFIG` checks all of the data'
                )


def heads(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the names and modules of a segmentor's heads that have ``num_classes``."""
    segmentor = model.module if is_model_wrapper(model) else model
    for attribute in ('decode_head', 'auxiliary_head'):
        found = getattr(segmentor, attribute, None)
        several = isinstance(found, nn.ModuleList)
        for index, head in enumerate(found if several else [found]):
            if hasattr(head, 'num_classes'):
                yield (f'{attribute}[{index}]' if several else attribute), head
