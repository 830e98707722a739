"""The loss on validation images, compared with that of mmsegmentation's logits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mmseg_twins.errors import SettingError
from mmseg_twins.evaluation import LossMetric
from mmseg_twins.models.segmentors.results import WANTED
from mmseg_twins.ops import upsampled_labels
from models.segmentors.pairs import SLIDE, image_of, make_pair, meta_of, samples_of

CLASSES = 5


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of some ten pixels, so that images have many."""
    monkeypatch.setattr(upsampled_labels, 'CPU_BUDGET', 16 << 10)


@pytest.fixture(autouse=True)
def no_other_metric() -> Iterator[None]:
    """Nothing asks for a loss before the test, nor after it."""
    hub = MessageHub.get_current_instance()
    hub.runtime_info.pop(WANTED, None)
    yield
    hub.runtime_info.pop(WANTED, None)


def labeled(meta: dict) -> SegDataSample:
    """A sample whose ground truth has pixels to ignore."""
    (sample,) = samples_of(meta)
    labels = torch.randint(CLASSES, (1, *meta['ori_shape']))
    labels[:, ::3] = 255
    sample.gt_sem_seg = PixelData(data=labels)
    return sample


@torch.no_grad()
def measured(model, *batches: tuple[Tensor, list[SegDataSample]]) -> float:
    metric = LossMetric()
    for image, samples in batches:
        predicted = model.predict(image, samples)
        metric.process(None, [sample.to_dict() for sample in predicted])
    return metric.evaluate(size=sum(len(samples) for _, samples in batches))['loss']


@torch.no_grad()
def expected(builtin, batches, weight: list | None = None) -> float:
    """The mean over all pixels of the loss of mmsegmentation's full-size logits."""
    logits, labels = [], []
    for image, samples in batches:
        labels += [sample.gt_sem_seg.data.flatten() for sample in samples]
        predicted = builtin.predict(image, samples)
        logits += [each.seg_logits.data.flatten(1).T for each in predicted]
    weight = None if weight is None else torch.tensor(weight, dtype=torch.float64)
    logits, labels = torch.cat(logits), torch.cat(labels)
    return float(F.cross_entropy(logits, labels, weight, ignore_index=255))


@pytest.mark.parametrize(
    'test_cfg', [dict(mode='whole'), SLIDE], ids=['whole', 'slide']
)
@pytest.mark.parametrize('keep_logits', [False, True])
def test_it_is_the_mean_over_the_pixels_of_all_images(test_cfg, keep_logits):
    builtin, own = make_pair(test_cfg={**test_cfg, 'keep_logits': keep_logits})
    batches = [
        (image_of(107, 146), [labeled(meta_of((107, 146)))]),
        (
            image_of(128, 160, batch=2),
            [
                labeled(meta_of((128, 160), ori_shape=(70, 90), padding=(0, 31, 0, 0))),
                labeled(meta_of((128, 160), flip='horizontal')),
            ],
        ),
    ]
    assert measured(own, *batches) == pytest.approx(
        expected(builtin, batches), rel=1e-9
    )


def test_weights_of_loss_and_classes_count():
    weight = [1.0, 2.0, 0.5, 3.0, 1.5]
    builtin, own = make_pair(test_cfg=dict(mode='whole'))
    own.decode_head.loss_decode.class_weight = weight
    own.decode_head.loss_decode.loss_weight = 0.4
    batch = image_of(64, 96), [labeled(meta_of((64, 96)))]
    loss = expected(builtin, [batch], weight)
    assert measured(own, batch) == pytest.approx(0.4 * loss, rel=1e-9)


def test_labels_stay_the_same():
    _, own = make_pair(test_cfg=SLIDE)
    image, sample = image_of(107, 146), labeled(meta_of((107, 146)))
    with torch.no_grad():
        plain = own.predict(image, [sample.clone()])[0].pred_sem_seg.data
        LossMetric()
        with_loss = own.predict(image, [sample])[0].pred_sem_seg.data
    assert torch.equal(plain, with_loss)


class Largest(TorchDispatchMode):
    """Notes the largest result of any operation."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.is_floating_point():
            self.numel = max(self.numel, out.numel())
        return out


def test_no_logits_are_held_at_full_size():
    _, own = make_pair(test_cfg=dict(mode='whole'))
    sample = labeled(meta_of((64, 96), ori_shape=(640, 960)))
    LossMetric()
    with torch.no_grad(), Largest() as largest:
        own.predict(image_of(64, 96), [sample])
    assert 0 < largest.numel < CLASSES * 640 * 960 / 4


def test_another_loss_is_named():
    _, own = make_pair(test_cfg=dict(mode='whole'))
    own.decode_head.loss_decode = torch.nn.Identity()
    with pytest.raises(SettingError, match='softmax cross entropy'):
        measured(own, (image_of(64, 96), [labeled(meta_of((64, 96)))]))


def test_another_segmentor_is_named():
    builtin, _ = make_pair(test_cfg=dict(mode='whole'))
    with pytest.raises(SettingError, match=r'mmseg_twins\.EncoderDecoder'):
        measured(builtin, (image_of(64, 96), [labeled(meta_of((64, 96)))]))


def test_annotations_of_another_size_are_named():
    _, own = make_pair(test_cfg=dict(mode='whole'))
    sample = labeled(meta_of((64, 96)))
    sample.set_metainfo(dict(ori_shape=(70, 90)))
    with pytest.raises(SettingError, match='96x64 px and its image another size'):
        measured(own, (image_of(64, 96), [sample]))


def test_a_training_is_the_same_with_it_and_can_keep_the_best(train, tmp_path: Path):
    settings = dict(
        model__type='mmseg_twins.EncoderDecoder',
        train_cfg__max_iters=2,
        train_cfg__val_interval=1,
    )
    with_loss = [
        dict(type='IoUMetric', iou_metrics=['mIoU']),
        dict(type='mmseg_twins.LossMetric'),
    ]
    best = dict(interval=1, save_best='loss')
    train('plain', **settings, default_hooks__checkpoint=dict(interval=1))
    train(
        'run',
        **settings,
        val_evaluator=with_loss,
        default_hooks__checkpoint=best,
    )
    first, second = (
        torch.load(tmp_path / run / 'iter_2.pth', weights_only=True)
        for run in ('plain', 'run')
    )
    for name, value in first['state_dict'].items():
        assert torch.equal(value, second['state_dict'][name])
    assert WANTED not in second['message_hub']['runtime_info']
    assert len(list((tmp_path / 'run').glob('best_loss_iter_*.pth'))) == 1
