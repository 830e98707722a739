"""Predictions of image files, with a tiny segmentor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.apis import MMSegInferencer, inference_model, init_model
from PIL import Image

from builders import CLASSES_OF_THREE, PALETTE_OF_THREE
from mmseg_twins.apis import Prediction, PredictionError, Predictor
from mmseg_twins.apis.prediction import choose_device
from mmseg_twins.errors import CheckpointError

pytestmark = pytest.mark.usefixtures('pictures')


def make_predictor(checkpoint: str = 'weights.pth') -> Predictor:
    return Predictor(Config.fromfile('config.py'), checkpoint, device='cpu')


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
    with pytest.raises(PredictionError, match='does not take 2000x2 px'):
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
