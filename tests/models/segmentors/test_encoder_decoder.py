"""Labels of the segmentor, compared with mmsegmentation's own in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import EncoderDecoder as MMSegEncoderDecoder
from mmseg.registry import MODELS
from torch import Tensor

from builders import tiny_config
from mmseg_twins import ops
from mmseg_twins.errors import SettingError
from mmseg_twins.models.segmentors import EncoderDecoder
from mmseg_twins.ops import upsampled_labels
from models.segmentors.pairs import (
    SLIDE,
    image_of,
    make_pair,
    meta_of,
    samples_of,
)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of some ten pixels, so that images have many."""
    monkeypatch.setattr(upsampled_labels, 'CPU_BUDGET', 16 << 10)


@torch.no_grad()
def count_differences(
    pair: tuple[MMSegEncoderDecoder, EncoderDecoder],
    image: Tensor,
    metas: list[dict] | None,
) -> int:
    """Return how many pixels have another label than mmsegmentation gives them."""
    results = []
    for model in pair:
        samples = None if metas is None else samples_of(*copy.deepcopy(metas))
        results.append(model.predict(image, samples))
    total = 0
    for expected, actual in zip(*results, strict=True):
        assert not actual.seg_logits.keys()
        expected, actual = expected.pred_sem_seg.data, actual.pred_sem_seg.data
        assert len(expected.unique()) > 1
        assert actual.dtype == expected.dtype
        assert actual.shape == expected.shape
        total += int((actual != expected).sum())
    return total


CASES = {
    'plain': dict(),
    'resized': dict(ori_shape=(101, 77)),
    'enlarged': dict(ori_shape=(301, 255)),
    'padded': dict(padding=(0, 20, 0, 13)),
    'padded on all sides': dict(padding=(3, 20, 5, 13), ori_shape=(200, 211)),
    'mirrored': dict(flip='horizontal', padding=(0, 20, 0, 13)),
    'upside down': dict(flip='vertical', padding=(0, 20, 0, 13), ori_shape=(99, 77)),
}


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize(
    'test_cfg', [dict(mode='whole'), SLIDE], ids=['whole', 'slide']
)
@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_labels_are_mmsegmentations(case, test_cfg, align_corners):
    pair = make_pair(test_cfg=test_cfg, align_corners=align_corners)
    assert (
        count_differences(pair, image_of(160, 224), [meta_of((160, 224), **case)]) == 0
    )


@pytest.mark.parametrize(
    'size',
    [(64, 96), (107, 146), (150, 196), (108, 147), (64, 300), (260, 96), (40, 60)],
    ids=lambda size: f'{size[0]}x{size[1]}',
)
@pytest.mark.parametrize('batch_windows', [1, 2, 8])
def test_windows_are_mmsegmentations_at_every_size(size, batch_windows):
    pair = make_pair(test_cfg={**SLIDE, 'batch_windows': batch_windows})
    assert count_differences(pair, image_of(*size), [meta_of(size)]) == 0


@pytest.mark.parametrize('stride', [(16, 24), (64, 96), (1, 90)])
def test_any_overlap_of_windows_is_averaged(stride):
    pair = make_pair(test_cfg={**SLIDE, 'stride': stride})
    assert count_differences(pair, image_of(88, 130), [meta_of((88, 130))]) == 0


@pytest.mark.parametrize(
    'test_cfg', [dict(mode='whole'), SLIDE], ids=['whole', 'slide']
)
def test_each_image_of_a_batch_has_its_own_padding(test_cfg):
    pair = make_pair(test_cfg=test_cfg)
    size = (128, 160)
    metas = [
        meta_of(size, padding=(0, 31, 0, 0), ori_shape=(70, 90)),
        meta_of(size, padding=(0, 0, 0, 40), flip='vertical'),
    ]
    assert count_differences(pair, image_of(*size, batch=2), metas) == 0


@pytest.mark.parametrize(
    'test_cfg', [dict(mode='whole'), SLIDE], ids=['whole', 'slide']
)
def test_images_without_samples_are_labeled(test_cfg):
    pair = make_pair(test_cfg=test_cfg)
    assert count_differences(pair, image_of(128, 160, batch=2), None) == 0


@pytest.mark.parametrize(
    'test_cfg', [dict(mode='whole'), SLIDE], ids=['whole', 'slide']
)
def test_a_binary_head_has_its_threshold(test_cfg):
    pair = make_pair(classes=2, out_channels=1, test_cfg=test_cfg)
    metas = [meta_of((128, 160), ori_shape=(190, 240))]
    assert count_differences(pair, image_of(128, 160), metas) == 0


def test_many_classes_are_told_apart():
    pair = make_pair(classes=150, test_cfg=SLIDE)
    metas = [meta_of((128, 160), ori_shape=(190, 240))]
    assert count_differences(pair, image_of(128, 160), metas) == 0


@pytest.mark.parametrize(
    'test_cfg', [dict(mode='whole'), SLIDE], ids=['whole', 'slide']
)
def test_in_float32_labels_differ_in_ties_only(test_cfg):
    pair = [model.float() for model in make_pair(classes=150, test_cfg=test_cfg)]
    metas = [meta_of((120, 160), ori_shape=(450, 600))]
    differences = count_differences(pair, image_of(120, 160).float(), metas)
    assert differences <= 450 * 600 / 100_000


@torch.no_grad()
def test_logits_are_there_where_they_are_asked_for():
    builtin, own = make_pair(test_cfg={**SLIDE, 'keep_logits': True})
    image = image_of(128, 160)
    (expected,), (actual,) = (
        model.predict(image, samples_of(meta_of((128, 160))))
        for model in (builtin, own)
    )
    assert torch.equal(actual.seg_logits.data, expected.seg_logits.data)
    assert torch.equal(actual.pred_sem_seg.data, expected.pred_sem_seg.data)


@pytest.mark.parametrize(
    'test_cfg', [dict(mode='whole'), SLIDE], ids=['whole', 'slide']
)
def test_a_head_with_a_prediction_of_its_own_is_asked_for_it(test_cfg):
    pair = make_pair(test_cfg=test_cfg)
    metas = [meta_of((128, 160), padding=(0, 8, 0, 9), ori_shape=(190, 240))]
    for model in pair:
        model.decode_head.__class__ = type(
            'Head', (type(model.decode_head),), {'predict_by_feat': cubed}
        )
    assert count_differences(pair, image_of(128, 160), metas) == 0


def cubed(head: BaseDecodeHead, logits: Tensor, metas: list[dict]) -> Tensor:
    """Logits of full size that are no resized ones."""
    return BaseDecodeHead.predict_by_feat(head, logits, metas) ** 3


@torch.no_grad()
def test_losses_and_raw_logits_are_mmsegmentations():
    builtin, own = make_pair()
    image, samples = image_of(64, 96), samples_of(meta_of((64, 96)))
    samples[0].gt_sem_seg = PixelData(data=torch.randint(5, (1, 64, 96)))
    assert torch.equal(own(image), builtin(image))
    metas = [meta_of((64, 96))]
    expected = builtin.encode_decode(image, metas)
    assert torch.equal(own.encode_decode(image, metas), expected)
    losses = [model.loss(image, samples) for model in (builtin, own)]
    assert losses[0] == losses[1]


@torch.no_grad()
def test_a_high_image_holds_no_more_logits_than_a_low_one(monkeypatch):
    _, own = make_pair(test_cfg=SLIDE)
    held = []
    make_strips = ops.Strips
    monkeypatch.setattr(
        ops, 'Strips', lambda *args: held.extend(args[0]) or make_strips(*args)
    )
    for height in (150, 924):  # windows divide both
        own.predict(image_of(height, 150), samples_of(meta_of((height, 150))))
    low, high = (view.logits.untyped_storage().nbytes() for view in held)
    assert low == high


def test_strips_of_windows_that_are_asked_for_are_the_whole_prediction():
    _, own = make_pair(test_cfg={**SLIDE, 'confidence': True, 'batch_windows': 2})
    image, meta = image_of(150, 224), meta_of((150, 224), padding=(0, 20, 0, 13))
    with torch.no_grad():
        (expected,) = own.predict(image, samples_of(meta))
    asked, done = [], []

    def cut(rows: slice, columns: slice) -> Tensor:
        asked.append((rows.start, columns.start))
        return image[:, :, rows, columns]

    strips = own.predict_strips(cut, (150, 224), meta, lambda *at: done.append(at))
    first = next(strips)
    assert {row for row, _ in asked} == {0}  # the first labels need one row of windows
    labels, confidence = zip(first, *strips, strict=True)

    assert torch.equal(torch.cat(labels)[None], expected.pred_sem_seg.data)
    assert torch.equal(torch.cat(confidence)[None], expected.confidence.data)
    assert asked == [(y, x) for y in (0, 43, 86) for x in (0, 50, 100, 128)]
    assert done == [(number, 12) for number in range(2, 13, 2)]


def test_predictions_keep_no_graph_where_gradients_are_recorded():
    _, own = make_pair(test_cfg=SLIDE)
    (view,) = own.views(image_of(107, 146), samples_of(meta_of((107, 146))))
    assert own(image_of(64, 96)).requires_grad
    assert not view.logits.requires_grad


def test_windows_of_a_row_go_through_the_network_together(monkeypatch):
    _, own = make_pair(test_cfg={**SLIDE, 'batch_windows': 3})
    sizes = []
    own.backbone.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    with torch.no_grad():
        own.predict(image_of(107, 290))  # 2 rows of 5 windows
    assert sizes == [3, 2, 3, 2]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'mode': 'slid'}, "test_cfg.mode='slid'; give one of whole, slide"),
        ({'crop_size': None}, 'test_cfg.crop_size=None; .* of a window'),
        ({'crop_size': 64}, 'test_cfg.crop_size=64; .* of a window'),
        ({'stride': None}, 'test_cfg.stride=None; .* of a step'),
        ({'stride': (0, 50)}, r'test_cfg.stride=\(0, 50\); .* of a step'),
        ({'stride': (43, 97)}, r'stride=\(43, 97\) is more than .*\(64, 96\)'),
        ({'batch_windows': 0}, 'test_cfg.batch_windows=0; give a positive number'),
    ],
)
def test_windows_that_cannot_cover_an_image_get_one_sentence(change, message):
    cfg = {**tiny_config(), 'type': 'mmseg_twins.EncoderDecoder'}
    cfg['test_cfg'] = {**SLIDE, **change}
    with (
        DefaultScope.overwrite_default_scope('mmseg'),
        pytest.raises(SettingError, match=message),
    ):
        MODELS.build(ConfigDict(cfg))


def test_a_diagonal_flip_gets_one_sentence():
    _, own = make_pair()
    with pytest.raises(SettingError, match="flip_direction='diagonal'"):
        own.predict(image_of(64, 96), samples_of(meta_of((64, 96), flip='diagonal')))
