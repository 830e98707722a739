"""``init_cfg=dict(type='Pretrained', ...)`` loads everything or says what is wrong."""

from __future__ import annotations

import pytest
import torch

from builders import tiny


@pytest.fixture
def checkpoint(tmp_path):
    """Saves a state dict and returns the ``init_cfg`` that loads it."""

    def save(state, **kwargs):
        torch.save(dict(state_dict=state), tmp_path / 'weights.pth')
        path = str(tmp_path / 'weights.pth')
        return dict(init_cfg=dict(type='Pretrained', checkpoint=path, **kwargs))

    return save


def test_weights_are_loaded(checkpoint):
    source = tiny('SVT')
    target = tiny('SVT', **checkpoint(source.state_dict()))
    target.init_weights()
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name


def test_an_imagenet_checkpoint_may_lack_the_norms_after_stages(checkpoint):
    state = {
        name: value
        for name, value in tiny('SVT').state_dict().items()
        if not name.startswith('norm_list')
    }
    target = tiny('SVT', **checkpoint(state))
    target.init_weights()
    name = 'layers.0.0.norm1.weight'
    assert torch.equal(target.state_dict()[name], state[name])
    assert torch.equal(target.norm_list[0].weight, torch.ones(8).double())


def test_a_part_of_a_segmentor_is_loaded_by_prefix(checkpoint):
    source = tiny('PCPVT')
    state = {f'backbone.{name}': value for name, value in source.state_dict().items()}
    target = tiny('PCPVT', **checkpoint(state, prefix='backbone.'))
    target.init_weights()
    name = 'patch_embeds.0.projection.weight'
    assert torch.equal(target.state_dict()[name], source.state_dict()[name])


def test_a_missing_file_is_named():
    backbone = tiny('SVT', init_cfg=dict(type='Pretrained', checkpoint='no/such.pth'))
    with pytest.raises(FileNotFoundError, match=r"init_cfg.checkpoint='no/such.pth'"):
        backbone.init_weights()


def test_another_layout_is_refused(checkpoint):
    state = {'patch_embeds.0.proj.weight': torch.zeros(8, 3, 4, 4)}
    backbone = tiny('SVT', **checkpoint(state))
    with pytest.raises(ValueError, match='lacks .*twins2mmseg.py'):
        backbone.init_weights()


def test_another_size_is_refused(checkpoint):
    backbone = tiny('SVT', **checkpoint(tiny('SVT', mlp_ratios=(2,) * 4).state_dict()))
    with pytest.raises(ValueError, match=r'another size.*ffn.*same arch'):
        backbone.init_weights()


def test_other_image_channels_keep_the_rest(checkpoint):
    source = tiny('SVT')
    target = tiny('SVT', in_channels=4, **checkpoint(source.state_dict()))
    target.init_weights()
    name = 'layers.0.0.attn.qkv.weight'
    assert torch.equal(target.state_dict()[name], source.state_dict()[name])
