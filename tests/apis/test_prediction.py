"""Predictions of image files, with a tiny segmentor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.apis import MMSegInferencer, inference_model, init_model
from mmseg.structures import SegDataSample
from PIL import Image

from builders import CLASSES_OF_THREE, PALETTE_OF_THREE
from mmseg_twins.apis import Prediction, PredictionError, Predictor
from mmseg_twins.apis.prediction import choose_device
from mmseg_twins.apis.settings import training_size, without_resizing
from mmseg_twins.errors import CheckpointError, SettingError

pytestmark = pytest.mark.usefixtures('pictures')


def make_predictor(checkpoint: str = 'weights.pth', **options) -> Predictor:
    cfg = Config.fromfile('config.py')
    return Predictor(cfg, checkpoint, device='cpu', **options)


def predict(path: str) -> Prediction:
    return make_predictor()(path)


def test_predictions_and_classes_are_those_of_the_checkpoint():
    predictor = make_predictor()
    model = init_model('config.py', 'weights.pth', device='cpu')

    expected = inference_model(model, 'a.png').pred_sem_seg.data[0].numpy()

    assert len(np.unique(expected)) > 1
    assert np.array_equal(predictor('a.png').labels, expected)
    assert predictor.classes == CLASSES_OF_THREE
    assert predictor.palette == list(PALETTE_OF_THREE)


def test_mmsegmentations_inferencer_predicts_the_same():
    inferencer = MMSegInferencer('config.py', 'weights.pth', device='cpu')
    inferencer.show_progress = False
    result = inferencer('a.png', return_vis=True)

    assert np.array_equal(result['predictions'], predict('a.png').labels)
    assert result['visualization'].shape == (70, 90, 3)
    assert inferencer.model.dataset_meta['classes'] == CLASSES_OF_THREE


def test_an_image_that_the_model_cannot_take_is_named():
    Image.new('RGB', (2000, 2)).save('line.png')
    with pytest.raises(PredictionError, match='does not accept 2000x2 px'):
        predict('line.png')


def test_cuda_where_there_is_none_gets_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert choose_device('auto') == 'cpu'
    with pytest.raises(ValueError, match='PyTorch finds no CUDA GPU'):
        choose_device('cuda')


def test_weights_of_the_auxiliary_head_may_be_missing():
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


def test_weights_of_another_model_are_rejected():
    checkpoint = torch.load('weights.pth', weights_only=True)
    del checkpoint['state_dict']['decode_head.conv_seg.bias']
    torch.save(checkpoint, 'other.pth')
    with pytest.raises(CheckpointError, match=r'1 tensor is missing .*conv_seg.bias'):
        make_predictor('other.pth')


def gray(image: Image.Image) -> Image.Image:
    return image.convert('L')


def transparent(image: Image.Image) -> Image.Image:
    image = image.convert('RGBA')
    image.putalpha(7)
    return image


@pytest.mark.parametrize('change', [gray, transparent])
def test_gray_and_transparent_images_are_read_as_colors(change):
    plain = Image.open('a.png')
    plain = gray(plain).convert('RGB') if change is gray else plain
    change(plain).save('changed.png')
    result = predict('changed.png')
    assert np.array_equal(result.image, np.asarray(plain))
    plain.save('plain.png')
    assert np.array_equal(result.labels, predict('plain.png').labels)


def test_of_16_bits_the_upper_8_are_read():
    values = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 15
    Image.fromarray(values).save('deep.png')
    assert np.abs(predict('deep.png').image[..., 0] - values / 256).max() <= 1


def test_photographs_are_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    Image.open('a.png').save('turned.jpg', exif=exif, quality=100)
    result = predict('turned.jpg')
    assert result.image.shape == (90, 70, 3)
    assert result.labels.shape == (90, 70)


def reference(image: str, **test_cfg) -> SegDataSample:
    """What mmsegmentation's own segmentor predicts, at the image's own resolution."""
    cfg = Config.fromfile('config.py')
    cfg.model.type = 'EncoderDecoder'
    cfg.model.test_cfg = test_cfg
    cfg.test_pipeline = without_resizing(cfg.test_pipeline)
    return inference_model(init_model(cfg, 'weights.pth', device='cpu'), image)


@pytest.mark.parametrize('kind', ['EncoderDecoder', 'mmseg_twins.EncoderDecoder'])
def test_windows_at_full_resolution_are_mmsegmentations(kind):
    cfg = Config.fromfile('config.py')
    cfg.model.type = kind
    sizes = dict(window=48, stride=20, confidence=True)
    result = Predictor(cfg, 'weights.pth', device='cpu', **sizes)('a.png')
    test_cfg = dict(mode='slide', crop_size=(48, 48), stride=(20, 20))
    expected = reference('a.png', **test_cfg)

    assert np.array_equal(result.labels, expected.pred_sem_seg.data[0].numpy())
    probabilities = expected.seg_logits.data.softmax(0).amax(0).numpy()
    assert result.confidence.dtype == np.float32
    assert np.abs(result.confidence - probabilities).max() < 1e-5
    assert cfg.model.type == kind
    assert not np.array_equal(result.labels, predict('a.png').labels)


def test_confidence_is_there_where_it_is_asked_for():
    cfg = Config.fromfile('config.py')
    cfg.model.type = 'EncoderDecoder'
    model = init_model(cfg, 'weights.pth', device='cpu')
    expected = inference_model(model, 'a.png').seg_logits.data.softmax(0).amax(0)

    result = make_predictor(confidence=True)('a.png')
    assert np.abs(result.confidence - expected.numpy()).max() < 1e-5
    assert predict('a.png').confidence is None


def test_a_window_may_be_larger_than_the_image():
    result = make_predictor(window=500)('a.png')
    expected = reference('a.png', mode='whole').pred_sem_seg.data[0].numpy()
    assert np.array_equal(result.labels, expected)
    assert not result.was_shrunk


def test_windows_default_to_the_configs_crop_size():
    cfg = Config.fromfile('config.py')
    cfg.model.data_preprocessor.size = (48, 96)
    predictor = Predictor(cfg, 'weights.pth', device='cpu', full_resolution=True)
    assert predictor.model.test_cfg.crop_size == (48, 96)
    assert predictor.model.test_cfg.stride == (32, 64)


CROP = dict(type='RandomCrop', crop_size=(40, 56), cat_max_ratio=0.75)


@pytest.mark.parametrize(
    ('steps', 'size'),
    [
        ([dict(type='RandomResize', scale=(2048, 512)), CROP], (40, 56)),
        ([dict(CROP, crop_size=40)], (40, 40)),
        ([dict(type='Resize', scale=(90, 70), keep_ratio=True)], (70, 90)),
        (
            [
                dict(type='Resize', scale=(90, 70)),
                dict(type='mmseg.RandomCrop', crop_size=8),
            ],
            (8, 8),
        ),
    ],
)
def test_windows_default_to_the_size_of_training_images(steps, size):
    cfg = Config.fromfile('config.py')
    steps = [dict(type='LoadImageFromFile'), *steps, dict(type='PackSegInputs')]
    dataset = dict(type='RepeatDataset', dataset=dict(pipeline=steps))
    cfg.train_dataloader = dict(dataset=dataset)
    assert training_size(cfg) == size
    predictor = Predictor(cfg, 'weights.pth', device='cpu', full_resolution=True)
    assert predictor.model.test_cfg.crop_size == size


@pytest.mark.parametrize(
    'step',
    [
        dict(type='RandomResize', scale=(90, 70)),
        dict(type='Resize', scale_factor=0.5),
        dict(type='RandomFlip'),
    ],
)
def test_training_images_of_several_sizes_give_no_window(step):
    cfg = Config.fromfile('config.py')
    resize = dict(type='Resize', scale=(90, 70))
    steps = [step] if step['type'] == 'RandomFlip' else [resize, step]
    cfg.train_dataloader = dict(dataset=dict(pipeline=steps))
    assert training_size(cfg) is None


def test_batches_predict_what_single_images_do():
    Image.open('a.png').crop((0, 0, 60, 60)).save('small.png')
    Path('broken.png').write_bytes(b'no image')
    paths = ['a.png', 'b.png', 'a.png', 'broken.png', 'small.png', 'b.png', 'a.png']
    predictor = make_predictor(batch=2, confidence=True)
    sizes = []
    predictor.model.backbone.register_forward_hook(
        lambda module, args, out: sizes.append(len(args[0]))
    )
    results = list(predictor.predict_all(paths))

    assert sizes == [2, 1, 1, 2]
    assert isinstance(results.pop(paths.index('broken.png')), PredictionError)
    paths.remove('broken.png')
    single = make_predictor(confidence=True)
    for path, result in zip(paths, results, strict=True):
        expected = single(path)
        assert np.array_equal(result.image, expected.image)
        assert np.array_equal(result.labels, expected.labels)
        assert np.abs(result.confidence - expected.confidence).max() < 1e-5


def test_an_image_that_fails_in_a_batch_does_not_take_others_along(monkeypatch):
    predictor = make_predictor(batch=2)
    step = predictor.model.test_step

    def one_at_a_time(batch: dict) -> list:
        if len(batch['inputs']) > 1:
            raise RuntimeError('out of memory')
        return step(batch)

    monkeypatch.setattr(predictor.model, 'test_step', one_at_a_time)
    results = list(predictor.predict_all(['a.png', 'b.png']))
    assert np.array_equal(results[1].labels, predict('b.png').labels)


def test_progress_counts_windows():
    seen = []
    predictor = make_predictor(window=40, stride=30, batch=2)
    result = predictor.predict('a.png', progress=lambda *place: seen.append(place))

    # Of 96x96 px with padding, 3 rows of 3 windows; batches end with their row.
    assert seen == [(2, 9), (3, 9), (5, 9), (6, 9), (8, 9), (9, 9)]
    one_by_one = make_predictor(window=40, stride=30)('a.png')
    assert np.array_equal(result.labels, one_by_one.labels)


def test_another_segmentor_cannot_slide_or_be_confident():
    cfg = Config.fromfile('config.py')
    cfg.model.type = 'CascadeEncoderDecoder'
    with pytest.raises(SettingError, match='confidence needs a model of type Encoder'):
        Predictor(cfg, 'weights.pth', device='cpu', confidence=True)


def test_a_config_without_a_crop_size_needs_a_window():
    with pytest.raises(SettingError, match='the config has neither .*crop_size'):
        make_predictor(full_resolution=True)
