"""``tools/predict.py`` and mmsegmentation's own inference, with a tiny model."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.apis import MMSegInferencer, inference_model, init_model
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg.visualization import SegLocalVisualizer
from PIL import Image

from mmseg_twins.apis.overlay import draw_overlay
from mmseg_twins.apis.prediction import (
    Prediction,
    PredictionError,
    Predictor,
    choose_device,
)
from mmseg_twins.cli import predict as tool
from mmseg_twins.cli.image_files import find_images, plan_jobs, write_png

CLASSES = ('sky', 'a$b$', 'road')
PALETTE = ((10, 20, 200), (250, 0, 120), (90, 160, 30))
CONFIG = """
custom_imports = dict(imports=['mmseg_twins'], allow_failed_imports=False)
default_scope = 'mmseg'
norm_cfg = dict(type='SyncBN', requires_grad=True)
head = dict(
    type='FCNHead',
    in_channels=32,
    in_index=3,
    channels=8,
    num_convs=1,
    norm_cfg=norm_cfg,
    num_classes=3,
)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[120.0, 120.0, 120.0],
        std=[60.0, 60.0, 60.0],
        bgr_to_rgb=True,
        test_cfg=dict(size_divisor=32),
    ),
    backbone=dict(
        type='mmseg_twins.SVT',
        arch='small',
        embed_dims=[8, 16, 24, 32],
        num_heads=[1, 2, 3, 4],
        depths=[2, 1, 1, 1],
    ),
    decode_head=head,
    auxiliary_head=dict(head, num_convs=2),
    test_cfg=dict(mode='whole'),
)
image = dict(type='LoadImageFromFile')
resize = dict(type='Resize', scale=(128, 64), keep_ratio=True)
labels = dict(type='LoadAnnotations')
pack = dict(type='PackSegInputs')
test_pipeline = [image, resize, labels, pack]
test_dataloader = dict(dataset=dict(type='BaseSegDataset', pipeline=test_pipeline))
visualizer = dict(type='SegLocalVisualizer', name='visualizer')
tta_model = dict(type='SegTTAModel')
tta_pipeline = [
    image,
    dict(
        type='TestTimeAug',
        transforms=[
            [resize, dict(type='Resize', scale=(192, 96), keep_ratio=True)],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [labels],
            [pack],
        ],
    ),
]
"""


@pytest.fixture(scope='module')
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config and a checkpoint of random weights."""
    folder = tmp_path_factory.mktemp('model')
    (folder / 'config.py').write_text(CONFIG)
    init_default_scope('mmseg')
    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile(folder / 'config.py').model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    meta = {'dataset_meta': {'classes': CLASSES, 'palette': PALETTE}}
    torch.save({'meta': meta, 'state_dict': model.state_dict()}, folder / 'weights.pth')
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch) -> Path:
    """A folder with two images, in which the test then runs."""
    for index, name in enumerate(('b.png', 'a.png')):
        noise = np.random.default_rng(index).integers(256, size=(5, 6, 3))
        Image.fromarray(noise.astype(np.uint8)).resize((90, 70)).save(tmp_path / name)
    for name in ('config.py', 'weights.pth'):
        (tmp_path / name).symlink_to(made / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    return tmp_path


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


def predict(path: str | Path, **settings) -> Prediction:
    cfg = Config.fromfile('config.py')
    cfg.merge_from_dict(settings)
    return Predictor(cfg, 'weights.pth', device='cpu')(path)


def read(path: str) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_labels_and_overlays_are_what_the_model_predicts(project, run):
    status, said, _ = run('weights.pth', '.', '--out-dir', 'out')

    assert (status, said) == (0, '2 images done; results are in out\n')
    model = init_model('config.py', 'weights.pth', device='cpu')
    for name in ('a.png', 'b.png'):
        expected = inference_model(model, name).pred_sem_seg.data[0].numpy()
        assert len(np.unique(expected)) > 1
        with Image.open(f'out/labels/{name}') as file:
            assert (file.format, file.mode) == ('PNG', 'L')
            assert np.array_equal(np.asarray(file), expected)
        drawn = draw_overlay(
            read(name), expected, classes=CLASSES, palette=PALETTE, opacity=0.6
        )
        assert np.array_equal(read(f'out/overlays/{name}'), drawn)


def test_mmsegmentations_inferencer_predicts_the_same(project):
    inferencer = MMSegInferencer('config.py', 'weights.pth', device='cpu')
    inferencer.show_progress = False
    result = inferencer('a.png', return_vis=True)

    assert np.array_equal(result['predictions'], predict('a.png').labels)
    assert result['visualization'].shape == (70, 90, 3)
    assert inferencer.model.dataset_meta['classes'] == CLASSES


def test_augmented_predictions_are_the_average_of_all_views(project, run):
    assert run('weights.pth', 'a.png', '--out-dir', 'out', '--tta')[0] == 0

    cfg = Config.fromfile('config.py')
    segmentor = Predictor(cfg, 'weights.pth', device='cpu')
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
    assert not np.array_equal(labels, predict('a.png').labels)


def test_unreadable_files_are_named_and_skipped(project, run):
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


def test_an_image_that_the_model_cannot_take_is_named(project):
    Image.new('RGB', (2000, 2)).save('line.png')
    with pytest.raises(PredictionError, match='does not take 2000x2'):
        predict('line.png')


def test_results_are_replaced_with_force_only(project, run):
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


def test_an_interruption_leaves_whole_files(project, run, monkeypatch):
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


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(path, content):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, 'write_bytes', interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_png(tmp_path / 'a.png', np.zeros((2, 2), np.uint8), force=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['no.pth', '.'], "checkpoint: 'no.pth' does not exist"),
        (['weights.pth', 'c.png'], "image: 'c.png' does not exist; did you mean"),
        (['weights.pth', 'empty'], "image: the folder 'empty' has no files that end"),
        (['weights.pth', '.', '--opacity', '1.5'], "'1.5' is no number from 0 to 1"),
        (['a.png', '.'], 'a.png is no checkpoint'),
        (
            ['weights.pth', '.', '--cfg-options', 'model.decode_head.num_classes=5'],
            'weights.pth does not fit the config: 2 tensors are of another shape: '
            'another number of classes (decode_head.conv_seg.weight is 3x8x1x1 there '
            'and 5x8x1x1 in the model, ',
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
def test_mistakes_get_one_sentence(project, run, arguments, said):
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


def test_cuda_where_there_is_none_gets_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert choose_device('auto') == 'cpu'
    with pytest.raises(ValueError, match='PyTorch finds no CUDA GPU'):
        choose_device('cuda')


class Hostile:
    def __reduce__(self):
        return (Path.touch, (Path('ran'),))


def test_nothing_in_a_checkpoint_runs(project, run):
    torch.save({'state_dict': {}, 'other': Hostile()}, 'hostile.pth')
    status, _, error = run('hostile.pth', '.', '--out-dir', 'out')

    assert status == 2
    assert 'hostile.pth is refused' in error
    assert not Path('ran').exists()


def test_weights_of_the_auxiliary_head_may_be_missing(project):
    checkpoint = torch.load('weights.pth', weights_only=True)
    state = checkpoint['state_dict']
    checkpoint['state_dict'] = {
        f'module.{name}': tensor
        for name, tensor in state.items()
        if not name.startswith('auxiliary_head.')
    }
    torch.save(checkpoint, 'stripped.pth')
    cfg = Config.fromfile('config.py')
    stripped = Predictor(cfg, 'stripped.pth', device='cpu')
    assert np.array_equal(stripped('a.png').labels, predict('a.png').labels)


def make_meta(meta: dict, **settings) -> dict:
    """The classes and palette for a checkpoint that has this ``meta``."""
    checkpoint = torch.load('weights.pth', weights_only=True)
    torch.save({**checkpoint, 'meta': meta}, 'other.pth')
    cfg = Config.fromfile('config.py')
    cfg.merge_from_dict(settings)
    return Predictor(cfg, 'other.pth', device='cpu').model.dataset_meta


def test_classes_come_from_the_checkpoint_or_else_the_config(project):
    metainfo = {'test_dataloader.dataset.metainfo': dict(classes=('x', 'y', 'z'))}
    old = dict(CLASSES=list(CLASSES), PALETTE=[list(colour) for colour in PALETTE])
    assert make_meta(old, **metainfo) == dict(classes=CLASSES, palette=list(PALETTE))
    assert make_meta({}, **metainfo)['classes'] == ('x', 'y', 'z')
    named = {'test_dataloader.dataset.type': 'CityscapesDataset'}
    assert make_meta({}, **named)['classes'][:2] == ('road', 'sidewalk')


def test_a_missing_palette_is_the_same_each_time(project):
    meta = {'dataset_meta': {'classes': CLASSES}}
    palette = make_meta(meta)['palette']
    assert len(set(palette)) == 3
    assert palette == make_meta(meta)['palette']


def test_classes_that_nobody_names_get_one_sentence(project):
    with pytest.raises(ValueError, match='neither the checkpoint nor the config'):
        make_meta({})
    with pytest.raises(ValueError, match='checkpoint names 2 classes, .* predicts 3'):
        make_meta({'dataset_meta': {'classes': ('x', 'y')}})


def gray(image: Image.Image) -> Image.Image:
    return image.convert('L')


def transparent(image: Image.Image) -> Image.Image:
    image = image.convert('RGBA')
    image.putalpha(7)
    return image


@pytest.mark.parametrize('change', [gray, transparent])
def test_gray_and_transparent_images_are_read_as_colours(project, change):
    plain = Image.open('a.png')
    plain = gray(plain).convert('RGB') if change is gray else plain
    change(plain).save('changed.png')
    result = predict('changed.png')
    assert np.array_equal(result.image, np.asarray(plain))
    plain.save('plain.png')
    assert np.array_equal(result.labels, predict('plain.png').labels)


def test_of_16_bits_the_upper_8_are_read(project):
    values = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 15
    Image.fromarray(values).save('deep.png')
    assert np.abs(predict('deep.png').image[..., 0] - values / 256).max() <= 1


def test_photographs_are_turned_upright(project):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    Image.open('a.png').save('turned.jpg', exif=exif, quality=100)
    result = predict('turned.jpg')
    assert result.image.shape == (90, 70, 3)
    assert result.labels.shape == (90, 70)


def test_images_of_the_same_name_stay_apart(tmp_path):
    names = ('day/a.jpg', 'night/a.jpg', 'night/A.png', 'night/b.jpg')
    jobs = plan_jobs([tmp_path / name for name in names], Path('out'), force=False)
    assert [job.labels.as_posix() for job in jobs] == [
        'out/labels/day/a.png',
        'out/labels/night/a.jpg.png',
        'out/labels/night/A.png.png',
        'out/labels/night/b.png',
    ]
    assert [job.overlay.parts[2:] for job in jobs] == [
        job.labels.parts[2:] for job in jobs
    ]


def test_an_image_is_never_replaced_by_its_result(tmp_path):
    image = tmp_path / 'labels/a.png'
    image.parent.mkdir()
    image.touch()
    with pytest.raises(ValueError, match='would overwrite the image'):
        plan_jobs([image], tmp_path, force=True)


def test_folders_are_searched_for_images_and_results_left_out(tmp_path):
    for name in ('b.JPG', 'a.png', 'notes.txt', 'more/c.webp', 'out/labels/a.png'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    given = [str(tmp_path), str(tmp_path / 'a.png')]
    names = [path.name for path in find_images(given)]
    assert names == ['a.png', 'b.JPG']
    found = find_images(given, recursive=True, skip=tmp_path / 'out')
    assert [path.name for path in found] == ['a.png', 'b.JPG', 'c.webp']


def scene(height: int, width: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """A random image, and labels in vertical stripes."""
    image = np.random.default_rng(0).integers(256, size=(height, width, 3))
    labels = np.arange(width) * count // width
    return image.astype(np.uint8), np.tile(labels, (height, 1))


def test_painting_equals_mmsegmentations_visualizer():
    image, labels = scene(50, 60, 3)
    names = dict(classes=CLASSES, palette=PALETTE)
    drawn = draw_overlay(image, labels, **names, opacity=0.3, legend=False)
    # What it hands to matplotlib, older versions of which resample it.
    theirs = SegLocalVisualizer(alpha=0.3)._draw_sem_seg(
        image,
        PixelData(data=torch.from_numpy(labels)[None]),
        CLASSES,
        PALETTE,
        with_labels=False,
    )
    assert np.abs(drawn.astype(int) - theirs).max() <= 1


def test_opacity_goes_from_the_image_to_the_classes():
    image, labels = scene(50, 60, 3)
    names = dict(classes=CLASSES, palette=PALETTE)
    for opacity, expected in ((0, image), (1, np.array(PALETTE, np.uint8)[labels])):
        drawn = draw_overlay(image, labels, **names, opacity=opacity)
        assert np.array_equal(drawn[:50, :60], expected)


def test_the_legend_has_the_colours_of_the_classes_in_the_image():
    image, labels = scene(300, 60, 3)
    labels[labels == 1] = 0
    drawn = draw_overlay(image, labels, classes=CLASSES, palette=PALETTE)
    legend = {tuple(pixel) for pixel in drawn[:, 60:].reshape(-1, 3).tolist()}
    assert PALETTE[0] in legend
    assert PALETTE[2] in legend
    assert PALETTE[1] not in legend


@pytest.mark.parametrize(
    ('height', 'width', 'count'),
    [(1, 1, 1), (48, 64, 8), (300, 200, 60)],
)
def test_every_entry_of_the_legend_is_inside_the_picture(height, width, count):
    image, labels = scene(height, max(width, count), count)
    palette = [(255, index, 0) for index in range(count)]
    classes = [f'a class of number {index}' for index in range(count)]
    drawn = draw_overlay(image, labels, classes=classes, palette=palette)
    legend = drawn[:, image.shape[1] :]
    assert {tuple(colour) for colour in legend.reshape(-1, 3).tolist()} >= set(palette)
    border = np.concatenate([legend[-1], legend[:, -1]])
    assert (border == 255).all()


def test_labels_without_a_class_are_refused():
    image, labels = scene(50, 60, 4)
    with pytest.raises(ValueError, match='labels go up to 3 for 3 classes'):
        draw_overlay(image, labels, classes=CLASSES, palette=PALETTE)
