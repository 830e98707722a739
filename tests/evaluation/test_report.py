"""The report of a test: its numbers, its page, and what is kept while it runs."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.logging import MessageHub
from mmseg.evaluation import IoUMetric
from PIL import Image

from mmseg_twins.errors import SettingError
from mmseg_twins.evaluation import Report, report_page
from mmseg_twins.evaluation.report_metric import ABOUT, WORST
from mmseg_twins.evaluation.report_page import MATRIX_SIZE, most_confused
from mmseg_twins.evaluation.report_pictures import (
    WRONG,
    draw_confusion,
    label,
    row_shares,
)
from mmseg_twins.registry import METRICS

NAMES = ('sky', '<b>road</b>', '$a"', 'سماء', '空')
SIZE = (20, 30)


@pytest.fixture(autouse=True)
def nothing_known() -> None:
    MessageHub.get_current_instance().runtime_info.pop(ABOUT, None)


@pytest.fixture(autouse=True)
def no_matrix(monkeypatch) -> None:
    """The confusion matrix takes most of a report's time; it is tested by itself."""
    monkeypatch.setattr(report_page, 'draw_confusion', lambda *_: 'data:image/png,')


class Page(HTMLParser):
    """What is in a page: elements with their attributes, and texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())

    def find(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


def sample_of(path: Path, truth: np.ndarray, prediction: np.ndarray) -> dict:
    return {
        'img_path': str(path),
        'gt_sem_seg': {'data': torch.from_numpy(truth)[None]},
        'pred_sem_seg': {'data': torch.from_numpy(prediction)[None]},
    }


@pytest.fixture
def make_sample(tmp_path: Path) -> Callable[..., dict]:
    """Makes a sample of four classes, with its image; the more is wrong, the worse."""

    def make(index: int, wrong: float = 0.3) -> dict:
        rng = np.random.default_rng(0)
        truth = np.kron(rng.integers(4, size=(2, 3)), np.ones((10, 10), int))
        is_wrong = rng.permutation(truth.size).reshape(SIZE) < wrong * truth.size
        prediction = np.where(is_wrong, (truth + 1) % 4, truth)
        truth[:3] = 255
        path = tmp_path / f'image {index} <i>.png'
        Image.fromarray(np.full((*SIZE, 3), 9 * index, np.uint8)).save(path)
        return sample_of(path, truth, prediction)

    return make


@pytest.fixture
def report(tmp_path: Path) -> Callable[..., tuple[dict, Page]]:
    """Makes the report of samples; returns its numbers and its page."""

    def make(samples: list[dict], classes=NAMES, **options) -> tuple[dict, Page]:
        metric = Report(str(tmp_path / 'report'), **options)
        metric.dataset_meta = dict(classes=classes)
        metric.process(None, samples)
        metric.evaluate(len(samples))
        text = (tmp_path / 'report/report.json').read_text()
        numbers = json.loads(text, parse_constant=pytest.fail)  # no NaN
        page = (tmp_path / 'report/index.html').read_text(encoding='utf-8')

        return numbers, Page(page)

    return make


def test_scores_are_mmsegmentations(make_sample, report):
    samples = [make_sample(index) for index in range(3)]
    evaluator = Evaluator(IoUMetric())
    evaluator.dataset_meta = dict(classes=NAMES)
    evaluator.metrics[0].process(None, samples)
    theirs = evaluator.evaluate(3)
    numbers, _ = report(samples)
    for key, value in theirs.items():
        assert numbers[key] == pytest.approx(value, abs=0.005)
    assert numbers['classes'][0]['IoU'] < 90
    assert sum(one['share'] for one in numbers['classes']) == pytest.approx(100)


def test_numbers_are_those_of_the_pixels(tmp_path, report):
    truth = np.array([[0, 0, 0, 1], [1, 2, 9, 255]])
    prediction = np.array([[0, 0, 1, 1], [0, 0, 1, 2]])
    path = tmp_path / 'missing.png'
    numbers, page = report([sample_of(path, truth, prediction)], ('a', 'b', 'c', 'd'))
    assert numbers['confusion'] == [[2, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0] * 4]
    a, b, c, d = numbers['classes']
    assert (a['IoU'], a['Acc'], a['Precision']) == pytest.approx((40, 200 / 3, 50))
    assert (b['IoU'], b['Acc'], b['Precision']) == pytest.approx((25, 50, 100 / 3))
    assert (c['IoU'], c['Acc'], c['Precision']) == (0, 0, None)
    assert (d['IoU'], d['Acc'], d['Precision'], d['share']) == (None, None, None, 0)
    assert numbers['aAcc'] == 50
    assert numbers['mIoU'] == pytest.approx(65 / 3)
    assert numbers['pixels_of_no_class'] == 1
    assert page.texts.count('(not in the truth)') == 1
    assert page.texts[page.texts.index('pixels without a class') + 1] == '1'
    assert not any(one['alt'].startswith('The image') for one in page.find('img'))


def test_names_are_text_whatever_is_in_them(make_sample, report):
    about = {'checkpoint': '"><script>alert(1)'}
    numbers, page = report([make_sample(0)], about=about)
    assert [one['name'] for one in numbers['classes']] == list(NAMES)
    assert {*NAMES, '"><script>alert(1)'} <= set(page.texts)
    assert not page.find('b')[4:]  # those of the four main scores
    assert not page.find('i')
    assert len(page.find('script')) == 1
    assert page.find('img')[1]['alt'] == 'The image image 0 <i>.png'


def test_the_page_needs_no_other_file(make_sample, report):
    _, page = report([make_sample(0)])
    sources = [one.get('src') or one['srcset'] for one in page.find('img')]
    sources += [one['srcset'] for one in page.find('source')]
    assert len(sources) == 6
    assert all(source.startswith('data:image/') for source in sources)
    assert not page.find('link')
    assert 'src' not in page.find('script')[0]


def test_every_picture_has_a_text_and_every_link_a_target(make_sample, report):
    _, page = report([make_sample(0)])
    assert all(one['alt'] for one in page.find('img'))
    names = {attributes.get('id') for _, attributes in page.elements}
    for one in page.find('a'):
        assert one['href'].startswith('https://') or one['href'][1:] in names


def test_the_worst_images_are_shown_the_worst_first(make_sample, report):
    wrong = np.random.default_rng(0).permutation(25) / 40
    samples = [make_sample(index, share) for index, share in enumerate(wrong)]
    numbers, page = report(samples)
    expected = [samples[i]['img_path'] for i in np.argsort(-wrong)]
    assert [one['path'] for one in numbers['images']] == expected
    shown = [one['alt'] for one in page.find('img') if 'The image' in one['alt']]
    assert shown == [f'The image {Path(path).name}' for path in expected[:WORST]]
    scores = [one['mIoU'] for one in numbers['images']]
    assert scores == sorted(scores)
    assert any(f'mean IoU {scores[0]:.2f}' in text for text in page.texts)


def test_label_maps_are_kept_of_few_images(make_sample, tmp_path):
    metric = Report(str(tmp_path / 'report'))
    metric.dataset_meta = dict(classes=NAMES)
    for index in range(20):
        metric.process(None, [make_sample(index, index / 40)])
    kept = [index for index, one in enumerate(metric.results) if one.maps]
    assert kept == list(range(20))[-WORST - 1 :]
    sizes = [one.pixels[0].nbytes + one.boundaries[0].nbytes for one in metric.results]
    assert max(sizes) < 1000


def test_pictures_show_what_is_wrong_and_what_is_ignored(make_sample, report):
    sample = make_sample(0)
    _, page = report([sample])
    (errors,) = (one for one in page.find('img') if 'Wrong' in one['alt'])
    content = base64.b64decode(errors['src'].partition(',')[2])
    pixels = np.asarray(Image.open(io.BytesIO(content))).astype(int)
    truth, prediction = (sample[key]['data'][0].numpy() for key in list(sample)[1:])
    wrong = (truth != prediction) & (truth != 255)
    is_red = np.abs(pixels - WRONG).sum(-1) < 120  # a JPEG
    assert (is_red == wrong).mean() > 0.97
    assert 0.1 < wrong.mean() < 0.5


def test_an_image_without_any_pixel_that_counts_is_not_among_the_worst(
    make_sample, report
):
    empty = make_sample(1)
    empty['gt_sem_seg']['data'][:] = 255
    numbers, page = report([make_sample(0), empty])
    assert numbers['images'][-1] == {'path': empty['img_path'], 'mIoU': None}
    assert sum('The image' in one['alt'] for one in page.find('img')) == 1


def test_without_any_pixel_that_counts_there_is_a_page(make_sample, report):
    empty = make_sample(1)
    empty['gt_sem_seg']['data'][:] = 255
    numbers, page = report([empty])
    assert numbers['mIoU'] is None
    assert 'All pixels are ignored.' in page.texts


def test_binary_masks_count_as_two_classes(make_sample, report):
    """mmsegmentation predicts them as floating-point numbers."""
    sample = make_sample(0)
    for key in ('gt_sem_seg', 'pred_sem_seg'):
        labels = sample[key]['data']
        sample[key]['data'] = labels.where(labels == 255, labels % 2)
    sample['pred_sem_seg']['data'] = sample['pred_sem_seg']['data'].float()
    numbers, _ = report([sample], ('background', 'foreground'))
    assert min(one['IoU'] for one in numbers['classes']) > 0
    assert numbers['pixels_of_no_class'] == 0


def test_colors_are_the_datasets_or_else_made(make_sample, tmp_path):
    palettes = ([(1, 2, 3)] * 5, None, [])
    found = []
    for index, palette in enumerate(palettes):
        metric = Report(str(tmp_path / f'report {index}'))
        metric.dataset_meta = dict(classes=NAMES, palette=palette)
        metric.process(None, [make_sample(0)])
        metric.evaluate(1)
        numbers = json.loads((tmp_path / f'report {index}/report.json').read_text())
        found.append([one['color'] for one in numbers['classes']])
    assert found[0] == [[1, 2, 3]] * 5
    assert found[1] == found[2]
    assert len({tuple(color) for color in found[1]}) == 5


def test_of_many_classes_those_of_frequent_confusions_are_drawn(make_sample, report):
    confusion = np.diag(np.full(150, 1000))
    confusion[7, 140] = 30
    confusion[140, 90] = 20
    assert most_confused(confusion) == [7, 90, 140]
    confusion += 1
    found = most_confused(confusion)
    assert {7, 90, 140} < set(found)
    assert MATRIX_SIZE - 1 <= len(found) <= MATRIX_SIZE
    _, page = report([make_sample(0)], [f'class {index}' for index in range(150)])
    assert any('of 150 classes with the most frequent' in text for text in page.texts)


def test_a_class_without_confusions_is_drawn_all_the_same(make_sample, report):
    numbers, page = report([make_sample(0, wrong=0)])
    assert numbers['aAcc'] == 100
    assert 'none' in page.texts


def test_rows_of_the_matrix_are_shares_of_a_class():
    confusion = np.array([[8, 0, 2, 0], [0, 0, 0, 0], [1, 2, 0, 1], [0, 0, 0, 5]])
    assert np.array_equal(
        row_shares(confusion, [0, 1, 2, 3]),
        [[0.8, 0, 0.2, 0], [np.nan] * 4, [0.25, 0.5, 0, 0.25], [0, 0, 0, 1]],
        equal_nan=True,
    )
    assert row_shares(confusion, [0, 2]) == pytest.approx(
        np.array([[0.8, 0.2, 0], [0.25, 0, 0.75]])
    )


def test_the_matrix_is_drawn_for_light_and_dark_pages(recwarn):
    confusion = np.array([[10, 0, 0], [5, 5, 0], [0, 0, 0]])
    for theme, color in (('light', (255, 255, 255)), ('dark', (22, 27, 34))):
        picture = draw_confusion(confusion, ['a', '$x', '空'], [0, 1, 2], theme)
        content = base64.b64decode(picture.partition(',')[2])
        assert Image.open(io.BytesIO(content)).convert('RGB').getpixel((1, 1)) == color
    assert not [one for one in recwarn if 'Glyph' in str(one.message)]


@pytest.mark.parametrize(
    ('name', 'drawn'),
    [('car', 'car 3'), ('空', '3'), ('سماء', '3'), ('a' * 30, 'a' * 23 + '… 3')],
)
def test_names_that_the_font_lacks_become_numbers(name: str, drawn: str):
    assert label(3, name) == drawn


def test_a_folder_with_files_is_refused(tmp_path):
    (tmp_path / 'mine.txt').touch()
    with pytest.raises(SettingError, match='is not empty; give a new folder'):
        METRICS.build(dict(type='mmseg_twins.Report', output_dir=str(tmp_path)))


def test_an_image_without_truth_is_named(make_sample, report):
    sample = make_sample(0)
    del sample['gt_sem_seg']
    with pytest.raises(SettingError, match=r'image 0 <i>.png has no ground truth'):
        report([sample])


def test_a_truth_of_another_size_is_named(make_sample, report):
    sample = make_sample(0)
    sample['gt_sem_seg']['data'] = sample['gt_sem_seg']['data'][:, ::2]
    with pytest.raises(SettingError, match='30x10 px and its prediction 30x20 px'):
        report([sample])
