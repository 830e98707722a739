"""Labels that the model has no class for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import nn

from mmseg_twins.engine import CheckLabels
from mmseg_twins.errors import SettingError


def check(*labels: int) -> None:
    """Checks a batch of one row of pixels for a model of 8 classes."""
    model = nn.Module()
    model.decode_head = nn.Module()
    model.decode_head.num_classes = 8
    model.decode_head.ignore_index = 255
    sample = SegDataSample(
        gt_sem_seg=PixelData(data=torch.tensor([[labels]])),
        metainfo=dict(seg_map_path='masks/a.png', reduce_zero_label=False),
    )
    batch = dict(inputs=[], data_samples=[sample])
    CheckLabels().before_train_iter(SimpleNamespace(model=model), 0, batch)


def test_a_label_without_a_class_is_named_with_its_file():
    with pytest.raises(SettingError) as error:
        check(0, 8, 8, 11)
    for part in ('masks/a.png', 'label 8, 11 in 3 pixels', '8 classes, 0 to 7'):
        assert part in str(error.value)


def test_labels_of_classes_and_ignored_pixels_pass():
    check(0, 7, 255)


def test_a_wrong_number_of_classes_ends_the_training_at_once(train):
    with pytest.raises(SettingError, match=r'has 8 classes.*num_classes is 7'):
        train(
            custom_hooks=[dict(type='mmseg_twins.CheckLabels')],
            model__decode_head__num_classes=7,
        )
