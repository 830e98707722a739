"""What docs/from_mmsegmentation.md says of mmsegmentation's built-in Twins is so.

If one of these fails, the built-in has changed, and the page with it.
"""

from __future__ import annotations

import padding_mask
import pytest
import torch
from mmcv.cnn.bricks import DropPath
from mmengine.hub import get_config
from mmseg.models.backbones import twins as builtin

from builders import TINY, tiny

WINDOWS = dict(windiow_sizes=(7, 7, 7, 7))


def published(name: str):
    return get_config(f'mmseg::twins/twins_{name}_ade20k-512x512.py')


def test_the_builtin_drops_paths_twice_in_all_but_lsa():
    backbone = builtin.SVT(**TINY, **WINDOWS, drop_path_rate=0.3).train()
    calls = {}
    for name, module in backbone.named_modules():
        if isinstance(module, DropPath):
            calls[name] = 0
            module.register_forward_hook(
                lambda *_, name=name: calls.update({name: calls[name] + 1})
            )
    backbone(torch.zeros(1, 3, 64, 64))
    per_block = {
        block: sum(n for name, n in calls.items() if name.startswith(block + '.'))
        for block in ('layers.2.1', 'layers.2.2')
    }
    # Attention and MLP: GSA's block drops twice on both branches, LSA's on one.
    assert per_block == {'layers.2.1': 4, 'layers.2.2': 3}


def test_the_builtins_queries_keys_and_values_of_gsa_start_as_xavier():
    backbone = builtin.PCPVT(**TINY)
    backbone.init_weights()
    weight = backbone.layers[3][0].attn.attn.in_proj_weight.detach()
    rows, columns = weight.shape
    assert weight.std() == pytest.approx((2 / (rows + columns)) ** 0.5, rel=0.05)
    assert weight.std() > 5 * 0.02


def test_the_builtins_exception_from_weight_decay_matches_no_parameter():
    keys = published('svt-s_uperhead_8xb2-160k').optim_wrapper.paramwise_cfg.custom_keys
    names = [name for name, _ in builtin.SVT(**TINY, **WINDOWS).named_parameters()]
    unmatched = [key for key in keys if not any(key in name for name in names)]
    assert unmatched == ['pos_block']
    assert any('position_encodings' in name for name in names)


def test_the_builtins_learning_rate_of_semantic_fpn_ends_where_it_starts():
    cfg = published('svt-s_fpn_fpnhead_8xb4-80k')
    (schedule,) = cfg.param_scheduler
    assert schedule.eta_min == cfg.optim_wrapper.optimizer.lr == 1e-4


def test_the_builtin_ignores_norm_cfg_in_blocks():
    backbone = builtin.SVT(**TINY, **WINDOWS, norm_cfg=dict(type='LN', eps=1e-3))
    eps = {
        name: module.eps
        for name, module in backbone.named_modules()
        if isinstance(module, torch.nn.LayerNorm)
    }
    outside = {value for name, value in eps.items() if not name.startswith('layers')}
    inside = {value for name, value in eps.items() if name.startswith('layers')}
    assert (outside, inside) == ({1e-3}, {1e-5})


def test_the_builtin_builds_a_gsa_for_each_lsa(monkeypatch):
    built = []

    class Counted(builtin.GSAEncoderLayer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            built.append(self)

    monkeypatch.setattr(builtin, 'GSAEncoderLayer', Counted)
    backbone = builtin.SVT(**TINY, **WINDOWS)
    used = [module for module in backbone.modules() if isinstance(module, Counted)]
    assert len(built) == sum(TINY['depths']) == 9
    assert len(used) == 4


def test_the_builtin_goes_on_from_random_weights_if_a_checkpoint_does_not_fit(tmp_path):
    torch.save({'patch_embeds.0.proj.weight': torch.zeros(8, 3, 4, 4)}, tmp_path / 'a')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a'))
    backbone = builtin.SVT(**TINY, **WINDOWS, init_cfg=init_cfg)
    backbone.init_weights()
    with pytest.raises(ValueError, match='has none of the tensors'):
        tiny('SVT', init_cfg=init_cfg).init_weights()


def test_the_builtins_multi_scale_ratios_count_from_the_image():
    resizes = published('svt-s_uperhead_8xb2-160k').tta_pipeline[-1].transforms[0]
    assert [resize.get('scale_factor') for resize in resizes] == [
        0.5, 0.75, 1.0, 1.25, 1.5, 1.75,
    ]  # fmt: skip
    assert not any('scale' in resize for resize in resizes)


def test_features_differ_only_where_one_side_is_padded():
    # In the first stage, of 56x56, 56x64 and 64x64 tokens, windows are of 7.
    sizes = [(224, 224), (224, 256), (256, 256)]
    equal, one_side, both_sides = (
        max(map(padding_mask.relative_rms, stages))
        for stages in padding_mask.compare(sizes).values()
    )
    assert max(equal, both_sides) < 1e-5
    assert one_side > 0.05


def test_the_picture_of_the_padding_mask_is_never_overwritten(tmp_path, capsys):
    picture = tmp_path / 'picture.png'
    picture.write_text('keep')
    with pytest.raises(SystemExit) as error:
        padding_mask.main([str(picture)])
    assert error.value.code == 2
    assert '--force replaces it' in capsys.readouterr().err
    assert picture.read_text() == 'keep'


def test_the_picture_of_the_padding_mask_is_drawn(tmp_path, monkeypatch, capsys):
    differences = {
        size: [torch.full((side // stride, 4), 0.1) for stride in (4, 8, 16, 32)]
        for size in padding_mask.SIZES
        for side in size[:1]
    }
    monkeypatch.setattr(padding_mask, 'compare', lambda *_: differences)
    assert padding_mask.main([str(tmp_path / 'picture.png')]) == 0
    assert (tmp_path / 'picture.png').read_bytes().startswith(b'\x89PNG')
    assert capsys.readouterr().out.count('10.0 %') == 12
