"""A segmentor is loaded by name, from a folder, from the hub, or with a config."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from huggingface_hub import constants

from builders import CLASSES_OF_THREE, PALETTE_OF_THREE
from mmseg_twins.apis import Predictor, SharingError, load_model
from mmseg_twins.apis.configs import find_config, read_plain_config
from mmseg_twins.checkpoints.reading import read_source
from mmseg_twins.errors import CheckpointError, SettingError

FILES = ['README.md', 'config.py', 'model.safetensors']


@pytest.fixture
def model(pictures) -> Predictor:
    return load_model('config.py', 'weights.pth', device='cpu')


@pytest.fixture
def hub(weight_hosts, tmp_path, monkeypatch):
    """A hub of which nothing is cached, and that knows the user."""
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', tmp_path / 'hub')
    monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', True, raising=False)
    monkeypatch.setattr(constants, 'HF_TOKEN_PATH', str(tmp_path / 'token'))
    monkeypatch.setenv('HF_TOKEN', 'hf_token')
    return weight_hosts


def equal(one: Predictor, other: Predictor) -> bool:
    states = one.model.state_dict(), other.model.state_dict()
    return (
        np.array_equal(one.predict('a.png').labels, other.predict('a.png').labels)
        and states[0].keys() == states[1].keys()
        and all(torch.equal(states[1][name], x) for name, x in states[0].items())
        and (one.classes, one.palette) == (other.classes, other.palette)
    )


def test_a_saved_segmentor_comes_back_bit_equal(model, tmp_path):
    model.save_pretrained('saved')

    again = load_model('saved', device='cpu')

    assert sorted(path.name for path in (tmp_path / 'saved').iterdir()) == FILES
    assert equal(model, again)
    assert again.classes == CLASSES_OF_THREE
    assert again.palette == list(PALETTE_OF_THREE)


def test_a_saved_segmentor_keeps_what_only_training_needs(model, tmp_path):
    model.save_pretrained('saved')

    before = read_source(tmp_path / 'weights.pth').state
    after = read_source(tmp_path / 'saved/model.safetensors').state

    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_nothing_saved_is_overwritten_without_force(model, tmp_path):
    model.save_pretrained('saved')
    (tmp_path / 'saved/README.md').write_text('mine')

    with pytest.raises(FileExistsError, match='exists already'):
        model.save_pretrained('saved')
    assert (tmp_path / 'saved/README.md').read_text() == 'mine'

    model.save_pretrained('saved', force=True)
    assert CLASSES_OF_THREE[0] in (tmp_path / 'saved/README.md').read_text()


def test_a_segmentor_goes_to_the_hub_and_comes_back_bit_equal(model, hub):
    url = model.push_to_hub('someone/streets')

    again = load_model('someone/streets', device='cpu')

    assert url.endswith('someone/streets')
    assert equal(model, again)
    card = hub.files['hub/someone/streets/resolve/main/README.md'].decode()
    assert 'pipeline_tag: image-segmentation' in card
    assert "load_model('someone/streets')" in card


def test_a_refused_upload_is_one_sentence(model, hub, monkeypatch):
    monkeypatch.delenv('HF_TOKEN')

    with pytest.raises(SharingError, match='someone/streets could not be uploaded'):
        model.push_to_hub('someone/streets')


def test_a_repository_that_does_not_exist_is_one_sentence(hub):
    with pytest.raises(CheckpointError, match='config.py of some/one on .*HTTP 404'):
        load_model('some/one')


def test_nothing_in_a_config_of_others_runs(model, tmp_path):
    model.save_pretrained('saved')
    (tmp_path / 'saved/config.py').write_text("model = __import__('os').getcwd()\n")

    with pytest.raises(SettingError, match='config of plain values .*line 1 calls'):
        load_model('saved')


@pytest.mark.parametrize(
    'text',
    [
        'import os',
        'a = 1 if True else 2',
        'a = [x for x in ()]',
        'a = dict(1)',
        'a += 1',
        'a = b',
        'a = (',
        '(' * 1000,
        'a.b = 1',
    ],
)
def test_only_plain_values_are_a_config(text, tmp_path):
    (tmp_path / 'config.py').write_text(text)

    with pytest.raises(SettingError, match='is not a config of plain values'):
        read_plain_config(tmp_path / 'config.py')


def test_values_are_those_that_mmengine_writes(tmp_path, model):
    values = model._cfg.to_dict() | {'pair': (1, -2.5), 'none': None, 'names': ['a']}
    (tmp_path / 'plain.py').write_text(type(model._cfg)(values).pretty_text)

    assert read_plain_config(tmp_path / 'plain.py').to_dict() == values


def test_options_are_the_predictors(model):
    model.save_pretrained('saved')

    again = load_model('saved', device='cpu', window=48, stride=24, confidence=True)

    assert again.model.test_cfg.crop_size == (48, 48)
    assert again.model.test_cfg.stride == (24, 24)
    assert again.predict('a.png').confidence is not None


def test_a_backbone_is_no_segmentor():
    with pytest.raises(SettingError, match='twins://upernet-svt-s-ade20k is a segm'):
        load_model('svt-s')


@pytest.mark.parametrize('source', ['no-such-thing', 'a/b/c', 'config.py'])
def test_what_is_no_source_is_one_sentence(source):
    with pytest.raises(SettingError, match='is not a segmentor: give a name'):
        load_model(source)


def test_a_folder_of_something_else_is_one_sentence(tmp_path):
    with pytest.raises(SettingError, match='has no config.py and no model.safetensors'):
        load_model(tmp_path)


def test_configs_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = 'twins_svt-s_uperhead_8x2_512x512_160k_ade20k'

    assert find_config(name).name == f'{name}.py'
    assert find_config(f'{name}.py') == find_config(name)
    name = 'twins_svt-s_uperhead_8x1_512x1024_160k_cityscapes'
    assert find_config(name) == find_config(f'cityscapes/{name}') is not None
    for hidden in ('cityscapes/../../setup', '../../setup', 'run', ''):
        assert find_config(hidden) is None
    assert find_config('no_such_config') is None
