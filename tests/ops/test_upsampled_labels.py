"""Labels of upsampled logits, and the matrices that upsample them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmseg_twins.ops import upsampled_labels
from mmseg_twins.ops.upsampled_labels import (
    Axis,
    Strips,
    View,
    blocks,
    rows_to_hold,
    strip_labels,
    tiling,
)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 7x7 px for 5 classes in float64."""
    monkeypatch.setattr(upsampled_labels, 'CPU_BUDGET', 5 * 8 * 50)


def axis_of(**settings) -> Axis:
    """An axis of one window, from 12 places to 48 pixels."""
    usual = dict(starts=(0,), window=48, logits=12, crop=(0, 48), flip=False, size=48)
    return Axis(**{**usual, 'align_corners': False, **settings})


def matrix_of(axis: Axis, side: int = 7) -> Tensor:
    """The whole matrix, put together from blocks."""
    places = len(axis.starts) * axis.logits
    matrix = torch.zeros(axis.size, places, dtype=torch.float64)
    for block in blocks(axis, side, torch.float64, torch.device('cpu')):
        matrix[block.outputs, block.inputs] = block.matrix
    return matrix


def interpolate(x: Tensor, size: int, align_corners: bool) -> Tensor:
    """Interpolate each column of a matrix as PyTorch does, (n, k) to (size, k)."""
    columns = x.T[None, :, :, None]
    size = (size, 1)
    out = F.interpolate(columns, size, mode='bilinear', align_corners=align_corners)
    return out[0, :, :, 0].T


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('flip', [False, True])
@pytest.mark.parametrize('size', [1, 17, 41, 90])
@pytest.mark.parametrize(
    ('starts', 'window'), [((0,), 48), ((0, 5, 10), 30), ((0, 20, 23), 30)]
)
def test_the_matrix_is_that_of_all_steps(starts, window, size, flip, align_corners):
    axis = axis_of(
        starts=starts,
        window=window,
        crop=(3, 38),
        flip=flip,
        size=size,
        align_corners=align_corners,
    )
    length = starts[-1] + window
    total = torch.zeros(length, 12 * len(starts), dtype=torch.float64)
    count = torch.zeros(length, 1)
    for number, start in enumerate(starts):
        pixels = slice(start, start + window)
        places = slice(number * 12, number * 12 + 12)
        total[pixels, places] += interpolate(
            torch.eye(12, dtype=torch.float64), window, align_corners
        )
        count[pixels] += 1
    expected = (total / count)[3:38]
    expected = interpolate(expected.flip(0) if flip else expected, size, align_corners)
    torch.testing.assert_close(matrix_of(axis), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize('side', [1, 13, 48, 100])
def test_blocks_of_any_size_make_the_same_matrix(side):
    axis = axis_of(starts=(0, 20), window=28, flip=True)
    assert torch.equal(matrix_of(axis, side), matrix_of(axis))


def test_a_block_touches_nothing_that_it_does_not_need():
    for block in blocks(axis_of(), 8, torch.float64, torch.device('cpu')):
        assert len(block.inputs) <= 4
        assert block.matrix.any(dim=0).all()


def view_of(*, classes: int = 5, logits: Tensor | None = None, **rows) -> View:
    rows_axis, columns = axis_of(**rows), axis_of(crop=(5, 40), size=60)
    size = (len(rows_axis.starts) * 12, 12, classes)
    if logits is None:
        logits = torch.randn(size, dtype=torch.float64)
    return View(logits, rows_axis, columns)


def upsampled(view: View) -> Tensor:
    """All logits at full resolution, (H, W, classes)."""
    rows, columns = matrix_of(view.rows), matrix_of(view.columns)
    return torch.einsum('yh,xw,hwc->yxc', rows, columns, view.logits)


def labels_of(views: list[View], threshold: float | None = None) -> Tensor:
    return made_of(views, threshold)[0]


def made_of(views: list[View], threshold: float | None, **wanted) -> list[Tensor]:
    """Labels of a whole image, and their probability if that is wanted."""
    strips = Strips(views, tiling(views[0].logits, in_cache=True)).ready()
    made = sorted(
        (
            (strip.rows.start, *strip_labels(strip, threshold, **wanted))
            for strip in strips
        ),
        key=lambda strip: strip[0],
    )
    _, *parts = zip(*made, strict=True)
    return [torch.cat(part) for part in parts if part[0] is not None]


def confidence_of(views: list[View], threshold: float | None = None) -> Tensor:
    labels, confidence = made_of(views, threshold, confidence=True)
    assert torch.equal(labels, labels_of(views, threshold))
    return confidence


@pytest.mark.parametrize('flip', [False, True])
def test_labels_are_made_as_soon_as_their_logits_are_there(flip):
    windows = dict(starts=(0, 20, 40), window=30, crop=(0, 70), size=70, flip=flip)
    view = view_of(**windows)
    expected = upsampled(view).argmax(-1)
    # No row of the image touches more than two rows of windows.
    held = tiling(view.logits, in_cache=True)._replace(side=7)
    assert rows_to_hold(view.rows, held) == 2
    ring = view._replace(logits=view.logits.new_full((24, 12, 5), torch.nan))
    small = tiling(ring.logits, in_cache=True)._replace(side=7)
    strips = Strips([ring], small)
    labels = torch.zeros(70, 60, dtype=torch.int64)
    for number in range(3):
        place = slice(number % 2 * 12, number % 2 * 12 + 12)
        ring.logits[place] = view.logits[number * 12 : number * 12 + 12]
        for strip in strips.ready(number * 12 + 12):
            labels[strip.rows] = strip_labels(strip, None)[0]
        # Whole strips of 7 rows only, up to where the next row of windows begins.
        done = [14, 35, 70][number]
        part = slice(70 - done, 70) if flip else slice(0, done)
        assert torch.equal(labels[part], expected[part])


def test_views_are_merged_by_the_mean_of_their_probabilities():
    views = [view_of(), view_of(crop=(3, 38), flip=True)]
    expected = sum(upsampled(view).softmax(-1) for view in views).argmax(-1)
    assert torch.equal(labels_of(views), expected)


@pytest.mark.parametrize('number', [1, 2])
def test_one_class_is_foreground_above_the_threshold(number):
    views = [view_of(classes=1), view_of(classes=1)][:number]
    probability = sum(upsampled(view).sigmoid() for view in views) / number
    expected = (probability[..., 0] > 0.3).long()
    assert expected.unique().tolist() == [0, 1]
    assert torch.equal(labels_of(views, 0.3), expected)


@pytest.mark.parametrize('number', [1, 2])
def test_confidence_is_the_mean_probability_of_the_label(number):
    views = [view_of(), view_of(crop=(3, 38), flip=True)][:number]
    mean = sum(upsampled(view).softmax(-1) for view in views) / number
    torch.testing.assert_close(confidence_of(views), mean.amax(-1), rtol=0, atol=1e-12)


@pytest.mark.parametrize('number', [1, 2])
def test_confidence_of_one_class_is_that_of_what_was_chosen(number):
    views = [view_of(classes=1), view_of(classes=1)][:number]
    mean = sum(upsampled(view).sigmoid() for view in views)[..., 0] / number
    expected = torch.where(mean > 0.3, mean, 1 - mean)
    torch.testing.assert_close(confidence_of(views, 0.3), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_interpolated_in_float32(dtype):
    view = view_of()
    view = view._replace(logits=view.logits.to(dtype))
    exact = view._replace(logits=view.logits.float())
    with torch.autocast('cpu', torch.bfloat16):
        labels = labels_of([view])
    assert torch.equal(labels, labels_of([exact]))


def test_tiles_keep_to_the_budget(monkeypatch):
    largest = 0
    make_tile = upsampled_labels.upsampled_tile

    def watched(*args):
        nonlocal largest
        tile = make_tile(*args)
        largest = max(largest, tile.nbytes)
        return tile

    monkeypatch.setattr(upsampled_labels, 'upsampled_tile', watched)
    labels_of([view_of()])
    assert 0 < largest <= upsampled_labels.CPU_BUDGET


def test_tiles_are_larger_on_an_accelerator():
    cpu, meta = (torch.empty(1, 1, 150, device=name) for name in ('cpu', 'meta'))
    large, small = tiling(meta, in_cache=False), tiling(cpu, in_cache=True)
    assert large.side > 10 * small.side
