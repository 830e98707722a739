"""Images that are predicted while they are read and results are written."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.models import SegDataPreProcessor
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from PIL import Image

from apis import peak_memory
from mmseg_twins.apis import (
    ArrayRows,
    EndOfRows,
    PredictionError,
    Predictor,
    draw_overlay,
    load_model,
)
from mmseg_twins.apis.rows import row_sink
from mmseg_twins.apis.rows.sinks import check_tiles
from mmseg_twins.apis.rows.windows import padding_of
from mmseg_twins.errors import SettingError

pytestmark = pytest.mark.usefixtures('pictures')

PLACE = dict(crs='EPSG:32633', transform=(0.5, 0, 500000, 0, -0.5, 5000000))


@pytest.fixture
def rasterio():
    return pytest.importorskip('rasterio', reason='TIFFs need the extra `tiff`')


def noise(*shape: int) -> np.ndarray:
    """Random pixels, (H, W, bands), in blots of some size."""
    rng = np.random.default_rng(0)
    small = rng.integers(256, size=(-(-shape[0] // 9), -(-shape[1] // 9), shape[2]))
    blots = small.astype(np.uint8).repeat(9, 0).repeat(9, 1)
    return np.ascontiguousarray(blots[: shape[0], : shape[1]])


def write_tiff(path: str, pixels: np.ndarray, **more) -> None:
    rasterio = pytest.importorskip('rasterio')
    height, width, bands = pixels.shape
    creation = dict(compress='deflate', crs=PLACE['crs']) | more
    transform = rasterio.Affine(*PLACE['transform'])
    with rasterio.open(
        path,
        'w',
        driver='GTiff',
        height=height,
        width=width,
        count=bands,
        dtype=pixels.dtype,
        **{'transform': transform, **creation},
    ) as file:
        file.write(pixels.transpose(2, 0, 1))


def read_tiff(path: str | Path) -> np.ndarray:
    rasterio = pytest.importorskip('rasterio')
    with rasterio.open(path) as file:
        return file.read().squeeze()


def make_predictor(cfg: Config | str = 'config.py', **options) -> Predictor:
    options = dict(window=48, stride=32, device='cpu') | options
    return load_model(cfg, options.pop('checkpoint', 'weights.pth'), **options)


def model_of(channels: int) -> tuple[Config, str]:
    """A config whose model takes so many bands, and its random weights."""
    cfg = Config.fromfile('config.py')
    cfg.model.backbone.in_channels = channels
    cfg.model.data_preprocessor.update(mean=[120.0] * channels, std=[60.0] * channels)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    meta = {'dataset_meta': dict(classes=('a', 'b', 'c'), palette=[(0, 0, 0)] * 3)}
    torch.save({'meta': meta, 'state_dict': model.state_dict()}, f'{channels}.pth')
    return cfg, f'{channels}.pth'


def whole(predictor: Predictor, pixels: np.ndarray) -> SegDataSample:
    """What the segmentor predicts of an image that it is given as a whole, in BGR."""
    size = pixels.shape[:2]
    sample = SegDataSample(metainfo=dict(ori_shape=size, img_shape=size))
    inputs = torch.from_numpy(pixels[..., ::-1].transpose(2, 0, 1).copy())
    with torch.no_grad():
        (result,) = predictor.model.test_step(
            dict(inputs=[inputs], data_samples=[sample])
        )
    return result


class Recorded(ArrayRows):
    """Rows that are recorded when they are read."""

    def __init__(self, pixels: np.ndarray) -> None:
        super().__init__(pixels)
        self.asked: list[tuple[int, int]] = []

    def read(self, start: int, stop: int) -> np.ndarray:
        self.asked.append((start, stop))
        return super().read(start, stop)


@pytest.mark.parametrize(
    'padding', [None, dict(size_divisor=32), dict(size=(300, 270))]
)
@pytest.mark.parametrize('batch', [1, 3])
def test_labels_in_bands_are_those_of_the_whole_image(padding, batch):
    cfg = Config.fromfile('config.py')
    cfg.model.data_preprocessor.test_cfg = padding
    predictor = make_predictor(cfg, confidence=True, batch=batch)
    pixels = noise(211, 257, 3)

    strips = list(predictor.predict_rows(ArrayRows(pixels)))

    expected = whole(predictor, pixels)
    labels = np.concatenate([strip.labels for strip in strips])
    other = labels != expected.pred_sem_seg.data[0].numpy()
    assert other.sum() <= labels.size / 100_000
    assert len(np.unique(labels)) > 1
    confidence = np.concatenate([strip.confidence for strip in strips])
    assert np.abs(confidence - expected.confidence.data[0].numpy()).max() < 1e-5
    assert [strip.rows.start for strip in strips[1:]] == [
        strip.rows.stop for strip in strips[:-1]
    ]


def test_no_more_rows_are_read_than_the_next_labels_need(monkeypatch):
    monkeypatch.setattr('mmseg_twins.ops.upsampled_labels.CPU_BUDGET', 4 << 10)
    source = Recorded(noise(144, 90, 3))
    cfg = Config.fromfile('config.py')
    cfg.model.data_preprocessor.test_cfg = None
    strips = make_predictor(cfg).predict_rows(source)
    next(strips)
    assert source.asked == [(0, 48)]
    list(strips)
    assert source.asked == [(0, 48), (32, 80), (64, 112), (96, 144)]


def test_gradients_are_recorded_between_strips(monkeypatch):
    monkeypatch.setattr('mmseg_twins.ops.upsampled_labels.CPU_BUDGET', 4 << 10)
    for _ in make_predictor().predict_rows(ArrayRows(noise(96, 96, 3))):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


def test_files_of_pixels_are_sources(tmp_path):
    pixels = noise(96, 96, 1)
    pixels.tofile(tmp_path / 'pixels')
    mapped = np.memmap(tmp_path / 'pixels', np.uint8, 'r', shape=pixels.shape)
    cfg, checkpoint = model_of(1)
    predictor = make_predictor(cfg, checkpoint=checkpoint)
    (strip,) = predictor.predict_rows(ArrayRows(mapped))
    (expected,) = predictor.predict_rows(ArrayRows(pixels))
    assert np.array_equal(strip.labels, expected.labels)


@pytest.mark.parametrize('name', ['a.png', 'a.tif'])
def test_a_single_window_at_a_time_is_normalized(name, rasterio, monkeypatch):
    Image.fromarray(noise(200, 150, 3)).save(name)
    sizes = []
    forward = SegDataPreProcessor.forward

    def record(self, data: dict, training: bool = False) -> dict:
        sizes.append(tuple(data['inputs'][0].shape[1:]))
        return forward(self, data, training)

    monkeypatch.setattr(SegDataPreProcessor, 'forward', record)
    make_predictor().predict(name)
    assert max(sizes) == (48, 48)


@pytest.mark.parametrize(
    ('test_cfg', 'padding', 'size'),
    [
        (None, (0, 0, 0, 0), (70, 90)),
        (dict(size_divisor=32), (0, 6, 0, 26), (96, 96)),
        (dict(size=(80, 64)), (0, 0, 0, 10), (80, 90)),
    ],
)
def test_padding_is_the_data_preprocessors(test_cfg, padding, size):
    preprocessor = SegDataPreProcessor(test_cfg=test_cfg)
    assert padding_of(preprocessor, (70, 90)) == (padding, size)


def test_progress_is_told_of_each_batch_of_windows():
    seen = []
    predictor = make_predictor(batch=2)
    source = ArrayRows(noise(96, 96, 3))
    list(predictor.predict_rows(source, progress=lambda *place: seen.append(place)))
    assert seen == [(2, 9), (3, 9), (5, 9), (6, 9), (8, 9), (9, 9)]


LAYOUTS = {
    'strips': {},
    'tiles': dict(tiled=True, blockxsize=64, blockysize=32),
    'planes': dict(interleave='band'),
    'plain': dict(compress=None),
}


@pytest.mark.parametrize('layout', LAYOUTS.values(), ids=LAYOUTS)
def test_a_tiff_is_predicted_as_a_png_file(layout):
    pixels = noise(130, 150, 3)
    write_tiff('image.tif', pixels, **layout)
    Image.fromarray(pixels).save('image.png')
    predictor = make_predictor(confidence=True)
    expected = predictor.predict('image.png')
    assert np.array_equal(expected.image, pixels)

    result = predictor.predict('image.tif')
    assert np.array_equal(result.image, pixels)
    assert np.array_equal(result.labels, expected.labels)
    assert np.array_equal(result.confidence, expected.confidence)


def test_results_of_a_tiff_are_tiffs_at_the_same_place(rasterio):
    pixels = noise(700, 150, 3)  # several rows of tiles
    write_tiff('image.tif', pixels)
    predictor = make_predictor(confidence=True)
    predictor.predict_file(
        'image.tif',
        'labels.tif',
        confidence='confidence.tif',
        overlay='overlay.tif',
        opacity=0.3,
    )

    expected = predictor.predict('image.tif')
    assert np.array_equal(read_tiff('labels.tif'), expected.labels)
    shades = read_tiff('confidence.tif')
    assert np.abs(shades - 255 * expected.confidence).max() < 0.51
    overlay = draw_overlay(
        pixels,
        expected.labels,
        classes=predictor.classes,
        palette=predictor.palette,
        opacity=0.3,
        legend=False,
    )
    assert np.array_equal(read_tiff('overlay.tif').transpose(1, 2, 0), overlay)
    for name in ('labels.tif', 'confidence.tif', 'overlay.tif'):
        with rasterio.open(name) as file:
            assert (file.crs, file.transform[:6]) == (
                rasterio.CRS.from_string(PLACE['crs']),
                PLACE['transform'],
            )
            assert file.dtypes[0] == 'uint8'
            assert file.compression.name == 'deflate'
            assert file.block_shapes[0] == (256, 256)


def test_results_of_an_image_without_a_place_have_none(rasterio):
    Image.fromarray(noise(70, 90, 3)).save('plain.tif')
    make_predictor().predict_file('plain.tif', 'labels.tif')
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        assert rasterio.open('labels.tif').crs is None


def test_results_may_be_png_files():
    predictor = make_predictor(confidence=True)
    predictor.predict_file(
        'a.png', 'labels.png', confidence='confidence.png', overlay='overlay.png'
    )
    expected = predictor.predict('a.png')
    assert np.array_equal(np.asarray(Image.open('labels.png')), expected.labels)
    drawn = draw_overlay(
        expected.image,
        expected.labels,
        classes=predictor.classes,
        palette=predictor.palette,
    )
    assert np.array_equal(np.asarray(Image.open('overlay.png')), drawn)
    shades = np.asarray(Image.open('confidence.png'))
    assert np.abs(shades - 255 * expected.confidence).max() < 0.51


def test_16_bits_are_scaled_as_it_is_said():
    pixels = noise(70, 90, 3)
    expected = make_predictor(confidence=True).predict_rows(ArrayRows(pixels))
    deep = ArrayRows(pixels.astype(np.uint16) * 10 + 1000)
    wide = make_predictor(confidence=True, value_range=(1000, 3550)).predict_rows(deep)
    for one, other in zip(expected, wide, strict=True):
        assert np.abs(one.confidence - other.confidence).max() < 1e-4
        assert (one.labels != other.labels).sum() <= 1


def test_png_files_of_16_bits_are_scaled_likewise(rasterio):
    deep = noise(70, 90, 1)[..., 0].astype(np.uint16) * 100
    Image.fromarray(deep).save('deep.png')
    Image.fromarray(deep).save('deep.tif')
    predictor = make_predictor(value_range=(0, 25500), confidence=True)
    png, tiff = predictor.predict('deep.png'), predictor.predict('deep.tif')
    assert np.array_equal(png.image[..., 0], noise(70, 90, 1)[..., 0])
    assert np.array_equal(png.confidence, tiff.confidence)


def test_values_beyond_the_range_are_its_ends():
    pixels = noise(70, 90, 3).astype(np.float32)
    clipped = make_predictor(value_range=(50, 200)).predict_rows(ArrayRows(pixels))
    ends = ArrayRows(pixels.clip(50, 200))
    expected = make_predictor(value_range=(50, 200)).predict_rows(ends)
    assert all(
        map(np.array_equal, [s.labels for s in clipped], [s.labels for s in expected])
    )


def test_missing_values_do_not_spoil_their_window():
    pixels = noise(48, 48, 3).astype(np.float32)
    pixels[:5, :5] = np.nan
    (strip,) = make_predictor(value_range=(0, 255), confidence=True).predict_rows(
        ArrayRows(pixels)
    )
    assert np.isfinite(strip.confidence).all()


def test_raw_values_are_left_as_they_are():
    pixels = noise(70, 90, 3)
    (expected,) = make_predictor().predict_rows(ArrayRows(pixels))
    raw = make_predictor(value_range='raw')
    (strip,) = raw.predict_rows(ArrayRows(pixels.astype(np.int16)))
    assert np.array_equal(strip.labels, expected.labels)


def test_pictures_of_raw_values_span_what_the_model_expects():
    pixels = np.array([[-999, 0, 120, 240, 999]], np.int16)[..., None]
    write_tiff('raw.tif', pixels.repeat(48, 0).repeat(3, 2))
    image = make_predictor(value_range='raw').predict('raw.tif').image
    assert image[0, :, 0].tolist() == [0, 0, 128, 255, 255]  # mean 120, std 60


@pytest.mark.parametrize('dtype', [np.uint16, np.int16, np.float32])
def test_values_of_more_bits_need_a_range(dtype):
    write_tiff('deep.tif', noise(70, 90, 3).astype(dtype))
    with pytest.raises(PredictionError, match=r'are .* with --value-range LOW HIGH'):
        make_predictor().predict('deep.tif')


def test_a_model_of_four_bands_takes_them_in_the_order_of_the_file():
    cfg, checkpoint = model_of(4)
    cfg.test_pipeline[0].imdecode_backend = 'tifffile'
    cfg.test_dataloader.dataset.pipeline = cfg.test_pipeline
    predictor = make_predictor(cfg, checkpoint=checkpoint)
    pixels = noise(70, 90, 4)
    write_tiff('four.tif', pixels)

    with torch.no_grad():
        sample = SegDataSample(metainfo=dict(ori_shape=(70, 90), img_shape=(70, 90)))
        inputs = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        (expected,) = predictor.model.test_step(
            dict(inputs=[inputs], data_samples=[sample])
        )
    assert np.array_equal(
        predictor.predict('four.tif').labels, expected.pred_sem_seg.data[0].numpy()
    )


def test_colors_of_four_bands_come_as_opencv_reads_them():
    cfg, checkpoint = model_of(4)
    cfg.test_pipeline[0].color_type = 'unchanged'
    cfg.test_dataloader.dataset.pipeline = cfg.test_pipeline
    predictor = make_predictor(cfg, checkpoint=checkpoint)
    pixels = noise(70, 90, 4)
    write_tiff('four.tif', pixels)
    Image.fromarray(pixels, 'RGBA').save('four.png')

    tiff, png = predictor.predict('four.tif'), predictor.predict('four.png')
    assert np.array_equal(tiff.image, png.image)
    assert np.array_equal(tiff.labels, png.labels)


def test_gdals_loader_reads_all_images_by_their_bands():
    cfg, checkpoint = model_of(2)
    cfg.test_dataloader.dataset.pipeline[0] = dict(type='LoadSingleRSImageFromFile')
    predictor = make_predictor(cfg, checkpoint=checkpoint)
    pixels = noise(70, 90, 2)
    write_tiff('two.tif', pixels)
    (expected,) = predictor.predict_rows(ArrayRows(pixels))
    assert np.array_equal(predictor.predict('two.tif').labels, expected.labels)


def test_bands_are_chosen():
    pixels = noise(70, 90, 3)
    five = np.concatenate([noise(70, 90, 2) // 2, pixels[..., ::-1]], 2)
    write_tiff('five.tif', five)
    predictor = make_predictor(bands=(5, 4, 3))
    assert np.array_equal(predictor.predict('five.tif').image, pixels)


def test_transparency_is_dropped_and_gray_becomes_colors(rasterio):
    colors = noise(70, 90, 3)
    Image.fromarray(np.dstack([colors, colors[..., 0]]), 'RGBA').save('alpha.tif')
    assert np.array_equal(make_predictor().predict('alpha.tif').image, colors)
    Image.fromarray(colors[..., 0]).save('gray.tif')
    gray = make_predictor().predict('gray.tif').image
    assert np.array_equal(gray, colors[..., [0, 0, 0]])


@pytest.mark.parametrize(
    ('make', 'options', 'message'),
    [
        (
            lambda: write_tiff('x.tif', noise(70, 90, 5), photometric='minisblack'),
            {},
            'it has 5 bands, but the model takes 3; choose .* --bands 1 2 3',
        ),
        (
            lambda: write_tiff('x.tif', noise(70, 90, 3)),
            dict(bands=(1, 2, 9)),
            'it has 3 bands, so --bands cannot include 9',
        ),
        (
            lambda: write_tiff('x.tif', noise(70, 90, 3)),
            dict(bands=(1, 2)),
            'it has 2 bands, but the model takes 3',
        ),
        (
            lambda: Image.fromarray(noise(70, 90, 3)).quantize(8).save('x.tif'),
            {},
            'indices into a palette',
        ),
        (lambda: Path('x.tif').write_bytes(b'no image'), {}, 'it cannot be decoded'),
        (lambda: None, {}, 'there is no such file'),
    ],
)
def test_a_tiff_that_does_not_fit_gets_one_sentence(make, options, message, rasterio):
    make()
    with pytest.raises(PredictionError, match=message):
        make_predictor(**options).predict('x.tif')


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(bands=(0, 1)), r'bands=\[0, 1\]; give positive integers'),
        (dict(bands=()), r'bands=\[\]; give positive integers'),
        (dict(value_range=(9, 9)), r'value_range=\(9, 9\); give two numbers'),
        (dict(value_range='all'), "value_range='all'; give two numbers"),
        (dict(bands=(1, 2, 3), window=None, stride=None), 'add --full-resolution'),
        (dict(value_range='raw', window=None, stride=None), 'add --full-resolution'),
    ],
)
def test_values_that_cannot_be_asked_for_get_one_sentence(options, message):
    with pytest.raises(SettingError, match=message):
        make_predictor(**options)


def test_rows_need_windows():
    predictor = make_predictor(window=None, stride=None)
    with pytest.raises(SettingError, match='need sliding windows'):
        predictor.predict_file('a.png', 'labels.png')
    assert not Path('labels.png').exists()


def test_confidence_has_to_be_predicted_to_be_written():
    with pytest.raises(SettingError, match='confidence=True'):
        make_predictor().predict_file('a.png', 'labels.png', confidence='c.png')


def test_a_step_that_needs_whole_images_gets_one_sentence():
    cfg = Config.fromfile('config.py')
    cfg.test_dataloader.dataset.pipeline.insert(1, dict(type='PhotoMetricDistortion'))
    with pytest.raises(SettingError, match='PhotoMetricDistortion in the test'):
        make_predictor(cfg)


def test_tiffs_without_rasterio_get_one_sentence(monkeypatch):
    Image.fromarray(noise(70, 90, 3)).save('plain.tif')
    monkeypatch.setitem(sys.modules, 'rasterio', None)
    with pytest.raises(SettingError, match=r"pip install 'mmseg_twins\[tiff\]'"):
        make_predictor().predict('plain.tif')
    make_predictor().predict('a.png')


def cut_off(path: str, share: float) -> None:
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: int(share * len(content))])


@pytest.mark.parametrize('suffix', ['tif', 'png'])
def test_rows_before_the_end_of_a_truncated_tiff_are_kept(suffix):
    rng = np.random.default_rng(0)
    pixels = rng.integers(256, size=(700, 90, 3)).astype(np.uint8)
    write_tiff('image.tif', pixels, compress=None)
    predictor = make_predictor(confidence=True)
    expected = predictor.predict('image.tif')
    cut_off('image.tif', 0.6)

    with pytest.raises(EndOfRows) as caught:
        predictor.predict_file(
            'image.tif', f'labels.{suffix}', confidence=f'confidence.{suffix}'
        )
    labels = read_tiff(f'labels.part.{suffix}')
    rows = len(labels)
    assert 256 < rows < 420
    assert str(caught.value).startswith('image.tif cannot be read beyond row 390')
    assert str(caught.value).endswith(
        f' of 700; its first {rows} rows are in labels.part.{suffix}, '
        f'confidence.part.{suffix}'
    )
    assert np.array_equal(labels, expected.labels[:rows])
    shades = read_tiff(f'confidence.part.{suffix}')
    assert np.abs(shades - 255 * expected.confidence[:rows]).max() < 0.51
    assert sorted(path.name for path in Path().glob('*labels*')) == [
        f'labels.part.{suffix}'
    ]


def test_a_tiff_that_ends_in_its_first_rows_leaves_nothing():
    write_tiff('image.tif', noise(200, 90, 3), compress=None)
    cut_off('image.tif', 0.1)
    with pytest.raises(EndOfRows, match='beyond row .* of 200, too early'):
        make_predictor().predict_file('image.tif', 'labels.tif')
    assert not list(Path().glob('*labels*'))


@pytest.mark.parametrize('name', ['labels.tif', 'labels.part.tif', 'labels.png'])
def test_no_result_is_overwritten_unasked(name):
    write_tiff('image.tif', noise(70, 90, 3))
    Path(name).write_text('mine')
    target = name.replace('.part', '')
    with pytest.raises(FileExistsError, match=f'{name} exists already'):
        make_predictor().predict_file('image.tif', target)
    assert Path(name).read_text() == 'mine'
    make_predictor().predict_file('image.tif', target, force=True)
    assert read_tiff(target).shape == (70, 90)


def test_an_image_is_never_replaced_by_its_result():
    before = Path('a.png').read_bytes()
    with pytest.raises(SettingError, match='a.png is the image'):
        make_predictor().predict_file('a.png', Path('a.png').resolve(), force=True)
    assert Path('a.png').read_bytes() == before


def test_a_result_of_another_kind_is_refused():
    with pytest.raises(ValueError, match=r'labels.jpg does not end in .tif or'):
        make_predictor().predict_file('a.png', 'labels.jpg')


def test_an_interruption_leaves_no_file():
    write_tiff('image.tif', noise(400, 90, 3))
    before = sorted(Path().iterdir())

    def interrupt(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_predictor().predict_file(
            'image.tif', 'labels.tif', overlay='overlay.tif', progress=interrupt
        )
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize('rows', [104, 1000])  # fails on closing, and on writing
def test_a_full_disk_is_said_and_leaves_no_file(rasterio, rows):
    rng = np.random.default_rng(0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with (
            pytest.raises(OSError, match='labels.tif could not be written'),
            row_sink(Path('labels.tif'), (rows, 1000), np.uint8, force=False) as sink,
        ):
            for _ in range(rows // 8):
                sink.write(rng.integers(256, size=(8, 1000)).astype(np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(Path().glob('*labels*'))


def test_a_missing_tile_is_noticed(rasterio):
    write_tiff('image.tif', noise(700, 700, 3))
    check_tiles(Path('image.tif'))
    cut_off('image.tif', 0.99)
    with pytest.raises(rasterio.errors.RasterioIOError, match='tiles are missing'):
        check_tiles(Path('image.tif'))


def test_labels_of_many_classes_are_written_with_16_bits(rasterio):
    rng = np.random.default_rng(0)
    labels = rng.integers(300, size=(70, 90)).astype(np.uint16)
    with row_sink(Path('labels.tif'), (70, 90), np.uint16, force=False) as sink:
        sink.write(labels[:30])
        sink.write(labels[30:])
    assert np.array_equal(read_tiff('labels.tif'), labels)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_height_of_a_tiff(rasterio, tmp_path):
    peak_memory.write_model(tmp_path)
    peaks = []
    for height in (3000, 12000):
        peak_memory.write_image(tmp_path / f'{height}.tif', height, 1000)
        options = ('--window', '256', '--stride', '200', '--confidence')
        peaks.append(peak_memory.predict(tmp_path, f'{height}.tif', *options)[0])
    low, high = peaks
    # Of the 9,000 rows more, the pixels alone take 27 MB, and GDAL's cache 7.
    assert high - low < 20
