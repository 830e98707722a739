"""Test-time augmentation, compared with mmsegmentation's own in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.models.segmentors import SegTTAModel as MMSegSegTTAModel
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from mmseg_twins.errors import SettingError
from mmseg_twins.models.segmentors import SegTTAModel
from mmseg_twins.ops import upsampled_labels
from models.segmentors.pairs import SLIDE, image_of, make_pair, meta_of, samples_of

ORI_SHAPE = (101, 130)
MODES = pytest.mark.parametrize(
    'test_cfg', [dict(mode='whole'), SLIDE], ids=['whole', 'slide']
)


class Stack(nn.Module):
    """A data preprocessor that leaves images in float64."""

    def forward(self, data: dict, training: bool) -> dict:
        return {**data, 'inputs': torch.stack(list(data['inputs']))}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of some ten pixels, so that images have many."""
    monkeypatch.setattr(upsampled_labels, 'CPU_BUDGET', 16 << 10)


def make_views(images: int = 1) -> dict[str, list]:
    """Images of several sizes, each of them mirrored as well, as TestTimeAug has them.

    Args:
        images: in the batch.
    """
    data: dict[str, list] = {'inputs': [], 'data_samples': []}
    for size in ((64, 96), (128, 160)):
        for flip in (None, 'horizontal'):
            meta = meta_of(size, ori_shape=ORI_SHAPE, flip=flip)
            samples = samples_of(*[meta] * images)
            for number, sample in enumerate(samples):
                sample.set_metainfo(dict(img_path=f'{number}.png'))
                sample.gt_sem_seg = PixelData(data=torch.full((1, *ORI_SHAPE), number))
            image = image_of(*size, batch=images)
            data['inputs'].append(list(image.flip(3) if flip else image))
            data['data_samples'].append(samples)
    return data


@torch.no_grad()
def predict_both(pair, data: dict | list) -> list[list[SegDataSample]]:
    """What mmsegmentation's and this package's model make of the same batch."""
    results = []
    for kind, module in zip((MMSegSegTTAModel, SegTTAModel), pair, strict=True):
        module.data_preprocessor = Stack()
        results.append(kind(module=module).test_step(copy.deepcopy(data)))
    return results


def labels_of(samples: list[SegDataSample]) -> list[Tensor]:
    return [sample.pred_sem_seg.data for sample in samples]


@MODES
@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.filterwarnings('ignore:The shape of value')
def test_labels_are_mmsegmentations(test_cfg, align_corners):
    pair = make_pair(test_cfg=test_cfg, align_corners=align_corners)
    expected, actual = predict_both(pair, make_views(images=2))
    assert len(labels_of(expected)[0].unique()) > 1
    assert all(map(torch.equal, labels_of(actual), labels_of(expected)))


@MODES
@torch.no_grad()
def test_foreground_is_where_the_mean_probability_is_above_the_threshold(test_cfg):
    """mmsegmentation takes the sigmoid twice, so that all is above a half."""
    builtin, own = make_pair(classes=2, out_channels=1, test_cfg=test_cfg)
    data = make_views()
    probabilities = [
        builtin.predict(torch.stack(images), samples)[0].seg_logits.data
        for images, samples in zip(*copy.deepcopy(data).values(), strict=True)
    ]
    expected = sum(probabilities) / len(probabilities) > 0.4
    (actual,) = labels_of(predict_both((builtin, own), data)[1])
    assert len(actual.unique()) == 2
    assert torch.equal(actual, expected.double())


@pytest.mark.filterwarnings('ignore:The shape of value')
def test_samples_know_what_mmsegmentations_do():
    for expected, actual in zip(
        *predict_both(make_pair(), make_views(images=2)), strict=True
    ):
        assert actual.metainfo == expected.metainfo
        assert torch.equal(actual.gt_sem_seg.data, expected.gt_sem_seg.data)
        assert not actual.seg_logits.keys()


@pytest.mark.filterwarnings('ignore:The shape of value')
def test_a_batch_may_be_a_list_of_images():
    pair = make_pair()
    data = make_views()
    entries = [
        {'inputs': image, 'data_samples': sample}
        for image, sample in zip(data['inputs'], data['data_samples'], strict=True)
    ]

    class First(Stack):
        def forward(self, data: list, training: bool) -> dict:
            (entry,) = data
            return super().forward(entry, training)

    pair[1].data_preprocessor = First()
    with torch.no_grad():
        (actual,) = SegTTAModel(module=pair[1]).test_step([entries])
    (expected,) = predict_both(pair, data)[0]
    assert torch.equal(actual.pred_sem_seg.data, expected.pred_sem_seg.data)


@pytest.mark.filterwarnings('ignore:The shape of value')
@pytest.mark.parametrize('keeps_logits', [False, True])
def test_segmentors_with_logits_are_merged_as_mmsegmentation_does(keeps_logits):
    builtin, own = make_pair(test_cfg=dict(mode='whole', keep_logits=keeps_logits))
    module = own if keeps_logits else builtin
    expected, actual = predict_both((builtin, module), make_views())
    assert torch.equal(actual[0].seg_logits.data, expected[0].seg_logits.data)
    assert all(map(torch.equal, labels_of(actual), labels_of(expected)))


def test_mmsegmentations_model_says_what_it_lacks():
    _, own = make_pair()
    with pytest.raises(SettingError, match=r"tta_model.type='mmseg_twins.SegTTAModel'"):
        predict_both((own, own), make_views())


def test_a_config_names_it_with_the_scope():
    _, own = make_pair()
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(dict(type='mmseg_twins.SegTTAModel', module=own))
    assert type(model) is SegTTAModel
