"""mmsegmentation's ``EncoderDecoder``, with prediction in bounded memory.

mmsegmentation holds the logits of all classes at the image's full resolution several
times, and pads those of each sliding window to the image's size to add them up. Here
labels are computed tile by tile from logits at the decode head's resolution
(:mod:`mmseg_twins.ops.upsampled_labels`): with sliding windows, memory grows with the
width of an image, not with its area. :meth:`EncoderDecoder.predict_strips` holds
neither the image nor its labels. Training is mmsegmentation's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from mmengine.structures import PixelData
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import EncoderDecoder as MMSegEncoderDecoder
from mmseg.structures import SegDataSample
from torch import Tensor

from ... import ops
from ...errors import SettingError
from ...registry import MODELS
from .results import PixelLoss, Results, full_view, loss_is_wanted
from .windows import Grid, Mosaic, check_test_cfg, predicted_size, sliding_grid

# Returns some rows and columns of images, normalized: (images, bands, h, w).
Cut = Callable[[slice, slice], Tensor]
# Is told how many windows of an image are done, and how many there are.
Progress = Callable[[int, int], None]


class LeftOut(PixelData):
    """Stands for logits that were not kept; using it raises an error that explains."""

    def __getattr__(self, name: str) -> Tensor:
        if name == 'data':
            raise SettingError(
                'seg_logits are left out of predictions, which saves memory; '
                "test_cfg.keep_logits=True keeps them, and tta_model.type='mmseg_twins."
                "SegTTAModel' does without"
            )
        raise AttributeError(name)


@MODELS.register_module()
class EncoderDecoder(MMSegEncoderDecoder):
    """mmsegmentation's ``EncoderDecoder``: same arguments, state dict and labels.

    Labels differ where a pixel's two largest logits are equal up to rounding.
    ``type='EncoderDecoder'`` selects mmsegmentation's.

    ``test_cfg`` has three more entries. ``keep_logits=True`` predicts as
    mmsegmentation does, with the logits of every pixel as ``seg_logits``, which are
    left out otherwise. ``batch_windows`` is the number of windows in a batch, 1 by
    default. ``confidence=True`` adds the probability of each pixel's label to the
    samples, as ``confidence``.

    With :class:`mmseg_twins.LossMetric`, it also computes the loss of images with
    ground truth.

    Raises:
        SettingError: ``test_cfg`` has an unknown mode, or windows that cannot cover an
            image.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.test_cfg is not None:
            check_test_cfg(self.test_cfg)

    @property
    def keeps_logits(self) -> bool:
        """Whether predictions have the logits of every pixel."""
        return self.test_cfg.get('keep_logits', False)

    def predict(
        self, inputs: Tensor, data_samples: list[SegDataSample] | None = None
    ) -> list[SegDataSample]:
        """Predict the labels of images.

        Args:
            inputs: (B, 3, H, W), normalized.
            data_samples: of the images; their sizes say what is padding, and how large
                the labels are to be.

        Returns:
            The samples, with ``pred_sem_seg``.
        """
        if self.keeps_logits:
            samples = super().predict(inputs, data_samples)
            if self._asks_for_more:
                for sample in samples:
                    views = [full_view(sample.seg_logits.data)]
                    self._results(views, sample).set_more(sample)
            return samples
        results: list[Results] = []
        for views, rows in self._views(inputs, data_samples):
            samples = data_samples or [SegDataSample() for _ in views]
            results = results or [
                self._results([view], sample)
                for view, sample in zip(views, samples, strict=True)
            ]
            for one in results:
                one.update(rows)
        for sample, one in zip(samples, results, strict=True):
            self._set(sample, one)
        return samples

    @torch.no_grad()
    def predict_strips(
        self,
        cut: Cut,
        size: tuple[int, int],
        meta: Mapping,
        progress: Progress | None = None,
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Predict an image in sliding windows, which are asked for one by one.

        Args:
            cut: returns windows of the image, from left to right, then downwards.
            size: of the image with its padding.
            meta: of the image's sample.
            progress: is called after each batch of windows.

        Yields:
            Labels of the image's next rows, (rows, W), int64, and the probability of
            each, or None.
        """
        check_test_cfg(self.test_cfg)
        strips = None
        for (view,), rows in self._sliding_views(cut, size, [meta], progress=progress):
            strips = strips or ops.Strips([view], ops.tiling(view.logits))
            for strip in strips.ready(rows):
                yield ops.strip_labels(
                    strip, self._threshold, confidence=self._is_confident
                )

    def views(
        self, inputs: Tensor, data_samples: list[SegDataSample]
    ) -> list[ops.View]:
        """Return the logits of images at the resolution of the decode head.

        For the arguments see :meth:`predict`.
        """
        *_, (views, _) = self._views(inputs, data_samples, hold_all=True)
        return views

    def merge(self, views: Sequence[ops.View], sample: SegDataSample) -> None:
        """Set what a sample is predicted to be by the mean of views' probabilities."""
        results = Results(views, self._threshold, confidence=self._is_confident)
        results.update()
        self._set(sample, results)

    def _results(self, views: Sequence[ops.View], sample: SegDataSample) -> Results:
        """Return what is wanted of an image, given its views and its sample."""
        loss = None
        if loss_is_wanted() and 'gt_sem_seg' in sample:
            loss = PixelLoss(self.decode_head, sample.gt_sem_seg.data)
        return Results(views, self._threshold, confidence=self._is_confident, loss=loss)

    def _set(self, sample: SegDataSample, results: Results) -> None:
        labels = results.labels
        if self.out_channels == 1:  # mmsegmentation gives binary labels as numbers
            labels = labels.to(self.decode_head.conv_seg.weight.dtype)
        sample.set_data(
            {'pred_sem_seg': PixelData(data=labels[None]), 'seg_logits': LeftOut()}
        )
        results.set_more(sample)

    @property
    def _is_confident(self) -> bool:
        return self.test_cfg.get('confidence', False)

    @property
    def _asks_for_more(self) -> bool:
        return self._is_confident or loss_is_wanted()

    @property
    def _threshold(self) -> float | None:
        return getattr(self.decode_head, 'threshold', None)

    def _views(
        self,
        inputs: Tensor,
        data_samples: list[SegDataSample] | None,
        *,
        hold_all: bool = False,
    ) -> Iterator[tuple[list[ops.View], int]]:
        """Run the network over images, one row of windows at a time.

        Args:
            inputs: (B, 3, H, W), normalized.
            data_samples: of the images.
            hold_all: whether rows of logits stay when no label needs them any more.

        Yields:
            The images, and how many rows of their logits there have been so far.
        """
        check_test_cfg(self.test_cfg)
        if data_samples is None:
            size = inputs.shape[2:]
            metas = [dict(ori_shape=size, img_shape=size)] * len(inputs)
        else:
            metas = [sample.metainfo for sample in data_samples]
        if self.test_cfg.get('mode') != 'slide':
            return self._whole_views(inputs, metas, hold_all)

        def cut(rows: slice, columns: slice) -> Tensor:
            return inputs[:, :, rows, columns]

        height, width = inputs.shape[2:]
        return self._sliding_views(cut, (height, width), metas, hold_all=hold_all)

    def _whole_views(
        self, inputs: Tensor, metas: list[dict], hold_all: bool
    ) -> Iterator[tuple[list[ops.View], int]]:
        logits = self._logits(inputs, metas)
        size = predicted_size(metas[0]) if self._resizes_only else logits.shape[2:]
        grid = Grid((0,), (0,), *size)
        mosaic = Mosaic(grid, metas, logits, self.align_corners, hold_all=hold_all)
        yield mosaic.views, mosaic.put(logits, 0, 0)

    def _sliding_views(
        self,
        cut: Cut,
        size: tuple[int, int],
        metas: Sequence[Mapping],
        *,
        hold_all: bool = False,
        progress: Progress | None = None,
    ) -> Iterator[tuple[list[ops.View], int]]:
        grid = sliding_grid(size, self.test_cfg['crop_size'], self.test_cfg['stride'])
        batch = self.test_cfg.get('batch_windows', 1)
        mosaic = None
        for row, y in enumerate(grid.ys):
            for column in range(0, len(grid.xs), batch):
                windows = torch.cat(
                    [
                        cut(slice(y, y + grid.height), slice(x, x + grid.width))
                        for x in grid.xs[column : column + batch]
                    ]
                )
                shape = windows.shape[2:]
                window_metas = [{**meta, 'img_shape': shape} for meta in metas]
                count = len(windows) // len(metas)
                logits = self._logits(windows, window_metas * count)
                mosaic = mosaic or Mosaic(
                    grid, metas, logits, self.align_corners, hold_all=hold_all
                )
                rows = mosaic.put(logits, row, column)
                if progress is not None:
                    done = row * len(grid.xs) + column + count
                    progress(done, len(grid.ys) * len(grid.xs))
            yield mosaic.views, rows

    def _logits(self, inputs: Tensor, metas: Sequence[Mapping]) -> Tensor:
        """Return what the decode head makes of images, before it is resized."""
        maps = self.extract_feat(inputs)
        if self._resizes_only:
            return self.decode_head(maps)
        return self.decode_head.predict(maps, metas, self.test_cfg)

    @property
    def _resizes_only(self) -> bool:
        """Whether the decode head predicts logits that are resized, and no more."""
        head = type(self.decode_head)
        return all(
            getattr(head, name) is getattr(BaseDecodeHead, name)
            for name in ('predict', 'predict_by_feat')
        )
