"""mmsegmentation's test-time augmentation, which merges views in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence

from mmseg.models.segmentors import SegTTAModel as MMSegSegTTAModel
from mmseg.structures import SegDataSample

from ... import ops
from ...registry import MODELS
from .encoder_decoder import EncoderDecoder


@MODELS.register_module()
class SegTTAModel(MMSegSegTTAModel):
    """mmsegmentation's ``SegTTAModel``: same arguments and labels.

    The logits of each view of an image stay at the decode head's resolution, and
    probabilities are averaged tile by tile. For a single class, the probability is the
    sigmoid of the logit, which mmsegmentation applies twice. Segmentors other than this
    package's :class:`EncoderDecoder`, and those that keep logits, are tested as in
    mmsegmentation.
    """

    def test_step(self, data: dict | Sequence) -> list[SegDataSample]:
        """Predict images by the mean of their views' probabilities.

        Args:
            data: a batch of the data loader; each of its entries is a list of views.

        Returns:
            A sample with ``pred_sem_seg`` for each image.
        """
        module = self.module
        if not isinstance(module, EncoderDecoder) or module.keeps_logits:
            return super().test_step(data)
        views, samples = [], []
        for view in split_views(data):
            batch = module.data_preprocessor(view, False)
            views.append(module.views(**batch))
            samples.append(batch['data_samples'])
        # From lists of images for each view to lists of views for each image.
        return [
            self._merge(*image)
            for image in zip(
                zip(*views, strict=True), zip(*samples, strict=True), strict=True
            )
        ]

    def _merge(
        self, views: Sequence[ops.View], samples: Sequence[SegDataSample]
    ) -> SegDataSample:
        first, last = samples[0], samples[-1]
        self.module.merge(views, last)
        # As mmsegmentation: the last view's sample, with what the first one knows.
        if 'gt_sem_seg' in first:
            last.set_data({'gt_sem_seg': first.gt_sem_seg})
        last.set_metainfo({'img_path': first.img_path})
        return last


def split_views(data: dict | Sequence) -> list[dict | list]:
    """Return a batch for each view, from a batch whose entries are lists of views."""
    if isinstance(data, dict):
        return [
            dict(zip(data, view, strict=True))
            for view in zip(*data.values(), strict=True)
        ]
    return [list(view) for view in zip(*data, strict=True)]
