"""``tools/predict.py``: its files and its messages."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.structures import SegDataSample
from PIL import Image

from mmseg_twins.apis import Predictor, draw_overlay
from mmseg_twins.apis.rows import write_png
from mmseg_twins.cli import predict as tool

pytestmark = pytest.mark.usefixtures('pictures')


@pytest.fixture
def run(capsys):
    """Run the command; return its exit status, and its stdout and stderr."""

    def run_tool(*arguments: str) -> tuple[int, str, str]:
        try:
            status = tool.main(['config.py', *arguments, '--device', 'cpu'])
        except SystemExit as exit_:
            status = exit_.code
        return status, *capsys.readouterr()

    return run_tool


def read(path: str) -> np.ndarray:
    return np.asarray(Image.open(path))


def make_predictor() -> Predictor:
    return Predictor(Config.fromfile('config.py'), 'weights.pth', device='cpu')


def test_labels_and_overlays_are_what_the_model_predicts(run):
    status, said, _ = run('weights.pth', '.', '--out-dir', 'out')

    assert (status, said) == (0, '2 images done; results are in out\n')
    predictor = make_predictor()
    for name in ('a.png', 'b.png'):
        labels = predictor(name).labels
        with Image.open(f'out/labels/{name}') as file:
            assert (file.format, file.mode) == ('PNG', 'L')
            assert np.array_equal(np.asarray(file), labels)
        drawn = draw_overlay(
            read(name), labels, classes=predictor.classes, palette=predictor.palette
        )
        assert np.array_equal(read(f'out/overlays/{name}'), drawn)


def test_augmented_predictions_are_the_average_of_all_views(run):
    arguments = ('weights.pth', 'a.png', '--out-dir', 'out', '--tta', '--confidence')
    assert run(*arguments)[0] == 0

    segmentor = make_predictor()
    image = cv2.imread('a.png')
    total = 0
    for scale in ((128, 64), (192, 96)):
        ratio = min(scale[0] / 90, scale[1] / 70)
        size = (int(90 * ratio + 0.5), int(70 * ratio + 0.5))
        for flip in (False, True):
            view = cv2.resize(image, size)
            view = view[:, ::-1].copy() if flip else view
            sample = SegDataSample(
                metainfo=dict(ori_shape=(70, 90), img_shape=view.shape[:2], flip=flip)
            )
            if flip:
                sample.set_metainfo(dict(flip_direction='horizontal'))
            tensor = torch.from_numpy(view.transpose(2, 0, 1).copy())
            with torch.no_grad():
                (result,) = segmentor.model.test_step(
                    dict(inputs=[tensor], data_samples=[sample])
                )
            total = total + result.seg_logits.data.softmax(dim=0)
    labels = read('out/labels/a.png')
    assert np.array_equal(labels, total.argmax(dim=0).numpy())
    assert not np.array_equal(labels, segmentor('a.png').labels)
    expected = 255 * total.amax(dim=0).numpy() / 4
    assert np.abs(read('out/confidence/a.png') - expected).max() < 0.51


def test_confidence_is_written_as_8_bits(run):
    options = ('--confidence', '--window', '48', '--batch', '3')
    assert run('weights.pth', 'a.png', 'b.png', '--out-dir', 'out', *options)[0] == 0

    cfg = Config.fromfile('config.py')
    result = Predictor(cfg, 'weights.pth', device='cpu', confidence=True, window=48)(
        'b.png'
    )
    assert np.array_equal(read('out/labels/b.png'), result.labels)
    with Image.open('out/confidence/b.png') as file:
        assert (file.format, file.mode) == ('PNG', 'L')
        difference = np.asarray(file) - 255 * result.confidence
    assert np.abs(difference).max() < 0.51


def test_confidence_that_is_there_is_not_overwritten(run):
    Path('out/confidence').mkdir(parents=True)
    Path('out/confidence/a.png').write_text('mine')
    status, _, error = run('weights.pth', 'a.png', '--out-dir', 'out', '--confidence')
    assert status == 2
    assert 'exist already (out/confidence/a.png)' in error


def test_shrinking_is_said_once_and_windows_mend_it(run):
    for name in ('large.png', 'larger.png'):
        Image.open('a.png').resize((300, 200)).save(name)
    arguments = ('weights.pth', 'large.png', 'larger.png', '--out-dir', 'out')
    _, _, error = run(*arguments)
    size = make_predictor()('large.png').tested_size
    assert f'large.png has 300x200 px and is predicted at {size[1]}x{size[0]} px' in (
        ' '.join(error.split())
    )
    assert error.count('--full-resolution') == 1
    _, _, error = run(*arguments, '--force', '--window', '96')
    assert 'is predicted at' not in error


def test_unreadable_files_are_named_and_skipped(run):
    Path('0.png').write_bytes(b'no image')
    Path('empty.jpg').touch()
    status, said, error = run('weights.pth', '.', '--out-dir', 'out')

    assert (status, said) == (1, '2 images done, 2 skipped; results are in out\n')
    assert '0.png is skipped: it cannot be decoded' in error
    assert 'empty.jpg is skipped: it cannot be decoded' in error
    assert sorted(path.name for path in Path('out/labels').iterdir()) == [
        'a.png',
        'b.png',
    ]


def test_results_are_replaced_with_force_only(run):
    Path('out/labels').mkdir(parents=True)
    Path('out/labels/a.png').write_text('mine')
    arguments = ('weights.pth', 'a.png', 'b.png', '--out-dir', 'out')
    status, _, error = run(*arguments)
    assert status == 2
    assert '1 of the 4 result files exist already (out/labels/a.png)' in error
    assert list(Path('out').rglob('*.*')) == [Path('out/labels/a.png')]
    assert Path('out/labels/a.png').read_text() == 'mine'

    assert run(*arguments, '--force')[0] == 0
    assert read('out/labels/a.png').shape == (70, 90)


def write_tiff(path: str, pixels: np.ndarray) -> None:
    rasterio = pytest.importorskip('rasterio', reason='TIFFs need the extra `tiff`')
    creation = dict(driver='GTiff', dtype=pixels.dtype, crs='EPSG:32633')
    height, width, count = pixels.shape
    transform = rasterio.Affine(0.5, 0, 500000, 0, -0.5, 5000000)
    size = dict(height=height, width=width, count=count)
    with rasterio.open(path, 'w', transform=transform, **size, **creation) as file:
        file.write(pixels.transpose(2, 0, 1))


def test_tiffs_become_tiffs_where_windows_slide_over_them(run):
    write_tiff('place.tif', read('a.png'))
    options = ('--window', '48', '--confidence', '--out-dir', 'out')
    status, said, error = run('weights.pth', 'place.tif', 'a.png', *options)

    assert (status, said) == (0, '2 images done; results are in out\n')
    bars = ' '.join(error.split())
    assert '2/2' in bars.partition('Windows')[0]  # images
    assert '9/9' in bars.partition('Windows')[2]
    for kind in ('labels', 'confidence'):
        assert np.array_equal(read(f'out/{kind}/place.tif'), read(f'out/{kind}/a.png'))
    height, width = read('a.png').shape[:2]
    assert read('out/overlays/place.tif').shape == (height, width, 3)
    assert read('out/overlays/a.png').shape[1] > width  # with its legend
    assert len([path for path in Path('out').rglob('*') if path.is_file()]) == 6


def test_tiffs_need_rasterio_where_windows_slide_over_them(run, monkeypatch):
    Image.open('a.png').save('a.tif')
    monkeypatch.setitem(sys.modules, 'rasterio', None)
    arguments = ('weights.pth', 'a.tif', '--window', '48', '--out-dir', 'out')
    status, _, error = run(*arguments)
    assert status == 2
    assert error.endswith("run: pip install 'mmseg_twins[tiff]'\n")
    assert not Path('out').exists()


def test_tiffs_become_png_files_without_windows(run):
    Image.open('a.png').save('a.tif')
    assert run('weights.pth', 'a.tif', '--out-dir', 'out')[0] == 0
    assert np.array_equal(read('out/labels/a.png'), make_predictor()('a.png').labels)


def test_overlays_may_be_left_out(run):
    for more in ((), ('--window', '48', '--force')):
        arguments = ('weights.pth', 'a.png', '--out-dir', 'out', '--no-overlay')
        assert run(*arguments, *more)[0] == 0
        files = [path for path in Path('out').rglob('*') if path.is_file()]
        assert files == [Path('out/labels/a.png')]


def test_values_and_bands_are_chosen(run):
    colors = read('a.png')
    noise = np.random.default_rng(0).integers(999, size=colors.shape[:2])
    deep = np.dstack([noise, colors.astype(np.uint16) * 10 + 7]).astype(np.uint16)
    write_tiff('deep.tif', deep)
    arguments = ('weights.pth', 'deep.tif', '--out-dir', 'out', '--window', '48')
    status, _, error = run(*arguments, '--bands', '2', '3', '4')
    assert status == 1
    assert 'deep.tif is skipped: its values are uint16' in ' '.join(error.split())

    more = ('--bands', '2', '3', '4', '--value-range', '7', '2557')
    assert run(*arguments, *more)[0] == 0
    assert run('weights.pth', 'a.png', '--out-dir', 'out', '--window', '48')[0] == 0
    different = read('out/labels/deep.tif') != read('out/labels/a.png')
    assert different.sum() <= 1


def test_rows_of_a_truncated_tiff_are_kept_and_named(run):
    rng = np.random.default_rng(0)
    write_tiff('long.tif', rng.integers(256, size=(700, 64, 3)).astype(np.uint8))
    content = Path('long.tif').read_bytes()
    Path('long.tif').write_bytes(content[: len(content) * 3 // 4])
    arguments = ('weights.pth', 'long.tif', 'a.png', '--out-dir', 'out')
    status, said, error = run(*arguments, '--window', '48', '--no-overlay')

    assert (status, said) == (1, '1 images done, 1 skipped; results are in out\n')
    line = next(line for line in error.splitlines() if 'long.tif' in line)
    assert line.startswith('predict.py: long.tif cannot be read beyond row ')
    rows = len(read('out/labels/long.part.tif'))
    assert f' of 700; its first {rows} rows are in out/labels/long.part.tif' in line
    assert not Path('out/labels/long.tif').exists()

    status, _, error = run(*arguments, '--window', '48', '--no-overlay')
    assert status == 2
    assert 'exist already (out/labels/long.part.tif, out/labels/a.png)' in error


def test_an_interruption_leaves_whole_files(run, monkeypatch):
    def interrupt(path, pixels, *, force):
        if path.name == 'b.png':
            raise KeyboardInterrupt
        write_png(path, pixels, force=force)

    monkeypatch.setattr(tool, 'write_png', interrupt)
    status, _, error = run('weights.pth', 'a.png', 'b.png', '--out-dir', 'out')

    assert status == 130
    assert error.endswith('predict.py: interrupted; the results so far are complete\n')
    files = [path for path in Path('out').rglob('*') if path.is_file()]
    assert sorted(files) == [Path('out/labels/a.png'), Path('out/overlays/a.png')]


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['no.pth', '.'], "checkpoint: 'no.pth' does not exist"),
        (['weights.pth', 'c.png'], "image: 'c.png' does not exist; did you mean"),
        (['weights.pth', 'empty'], "image: the folder 'empty' has no files that end"),
        (['weights.pth', '.', '--opacity', '1.5'], "'1.5' is not a number from 0 to 1"),
        (['weights.pth', '.', '--window', '0'], 'window=0; give a positive number'),
        (
            ['weights.pth', '.', '--window', '48', '--stride', '0'],
            'stride=0; give a number of pixels from 1 to 48',
        ),
        (
            ['weights.pth', '.', '--window', '48', '--stride', '49'],
            'stride=49; give a number of pixels from 1 to 48',
        ),
        (['weights.pth', '.', '--batch', '0'], 'batch=0; give a positive integer'),
        (['weights.pth', '.', '--bands', '1', '2', '3'], 'add --full-resolution'),
        (
            ['weights.pth', '.', '--window', '48', '--value-range', '9', '1'],
            'value_range=[9.0, 1.0]; give two numbers, the lower one first',
        ),
        (
            ['weights.pth', '.', '--tta', '--full-resolution'],
            'cannot be combined with test-time augmentation (--tta)',
        ),
        (['a.png', '.'], 'a.png is not a checkpoint'),
        (
            ['weights.pth', '.', '--cfg-options', 'model.decode_head.num_classes=5'],
            'weights.pth does not fit the config: 2 tensors are of another shape: '
            'another number of classes (decode_head.conv_seg.weight is 3x8x1x1 in the '
            'checkpoint and 5x8x1x1 in the model, ',
        ),
        (
            [
                'weights.pth',
                '.',
                '--cfg-options',
                'model.backbone.type=mmseg_twins.PCPVT',
            ],
            'tensors are unexpected (backbone.',
        ),
        (['backbone.pth', '.'], 'a bare backbone belongs in init_cfg'),
        (
            ['weights.pth', '.', '--tta', '--cfg-options', 'tta_model=None'],
            '--tta: the config has no tta_model',
        ),
        (
            ['weights.pth', '.', '--cfg-options', 'test_dataloader=None'],
            'prediction needs a test_dataloader.dataset.pipeline',
        ),
    ],
)
def test_mistakes_get_one_sentence(run, arguments, said):
    Path('empty').mkdir()
    state = torch.load('weights.pth', weights_only=True)['state_dict']
    backbone = {
        name.removeprefix('backbone.'): tensor
        for name, tensor in state.items()
        if name.startswith('backbone.')
    }
    torch.save({'state_dict': backbone}, 'backbone.pth')
    status, _, error = run(*arguments, '--out-dir', 'out')

    assert status == 2
    assert error.splitlines()[-1].startswith('predict.py: error: ')
    assert said in error.splitlines()[-1]
    assert not Path('out').exists()


class Hostile:
    def __reduce__(self):
        return (Path.touch, (Path('ran'),))


def test_nothing_in_a_checkpoint_runs(run):
    torch.save({'state_dict': {}, 'other': Hostile()}, 'hostile.pth')
    status, _, error = run('hostile.pth', '.', '--out-dir', 'out')

    assert status == 2
    assert 'hostile.pth is refused' in error
    assert not Path('ran').exists()
