"""``init_cfg=dict(type='Pretrained', ...)`` loads everything or says what is wrong."""

from __future__ import annotations

import pytest
import torch

from builders import tiny
from mmseg_twins.errors import CheckpointError


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
    with pytest.raises(CheckpointError, match=r"init_cfg.checkpoint='no/such.pth'"):
        backbone.init_weights()


def test_another_layout_is_refused(checkpoint):
    state = {'patch_embeds.0.proj.weight': torch.zeros(8, 3, 4, 4)}
    backbone = tiny('SVT', **checkpoint(state))
    with pytest.raises(ValueError, match='has none of .*twins2mmseg.py'):
        backbone.init_weights()


def test_another_size_is_refused(checkpoint):
    backbone = tiny('SVT', **checkpoint(tiny('SVT', mlp_ratios=(2,) * 4).state_dict()))
    with pytest.raises(ValueError, match=r'another size.*ffn.*same arch'):
        backbone.init_weights()


def test_a_missing_tensor_is_named(checkpoint):
    state = tiny('SVT').state_dict()
    del state['layers.1.0.attn.proj.bias']
    backbone = tiny('SVT', **checkpoint(state))
    with pytest.raises(ValueError, match='lacks 1 tensors .*layers.1.0.attn.proj.bias'):
        backbone.init_weights()


@pytest.mark.parametrize('channels', [1, 2, 4, 6, 7])
def test_images_with_equal_channels_keep_their_features(channels, checkpoint):
    source = tiny('SVT').eval()
    target = tiny('SVT', in_channels=channels, **checkpoint(source.state_dict())).eval()
    target.init_weights()
    gray = torch.rand(1, 1, 64, 96).double()

    expected = source(gray.expand(-1, 3, -1, -1))
    found = target(gray.expand(-1, channels, -1, -1))

    # Three channels share the weight that a single one has, up to their order.
    if channels in (1, 6):
        torch.testing.assert_close(found, expected)
    weight = target.patch_embeds[0].projection.weight
    rgb = source.patch_embeds[0].projection.weight
    expected_first = rgb.sum(1) if channels == 1 else rgb[:, 0] * 3 / channels
    torch.testing.assert_close(weight[:, 0], expected_first)


def test_weights_for_other_images_than_rgb_fit_the_same_only(checkpoint):
    backbone = tiny('SVT', **checkpoint(tiny('SVT', in_channels=4).state_dict()))
    with pytest.raises(ValueError, match=r'8x4x4x4 in the checkpoint and 8x3x4x4'):
        backbone.init_weights()
