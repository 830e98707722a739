"""What `convert_state_dict` finds, does and reports."""

from __future__ import annotations

import pytest
import torch

from builders import meta_state, random_state, shapes_of
from mmseg_twins.checkpoints.conversion import convert_state_dict
from mmseg_twins.errors import CheckpointError
from mmseg_twins.models.backbones import PCPVT, SVT


def parallel(state: dict) -> dict:
    return {f'module.{name}': tensor for name, tensor in state.items()}


@pytest.mark.parametrize('layout', ['official-cls', 'ssseg-upernet', 'mmseg-fpn'])
def test_data_parallels_prefix_is_taken_away(layout):
    state = meta_state(shapes_of(layout, 'svt-s'))
    plain, _ = convert_state_dict(state)

    converted, report = convert_state_dict(parallel(parallel(state)))

    assert converted.keys() == plain.keys()
    assert report.variant == 'svt-s'


@pytest.mark.parametrize(('backbone', 'variant'), [(PCPVT, 'pcpvt-s'), (SVT, 'svt-s')])
def test_classifier_loads_into_the_backbone(backbone, variant):
    state = random_state(shapes_of('official-cls', variant))

    converted, report = convert_state_dict(state)

    missing, unexpected = backbone(arch='small').load_state_dict(
        converted, strict=False
    )
    assert not unexpected
    assert tuple(missing) == report.missing
    assert all(name.startswith('norm_list.') for name in missing)
    assert sorted(report.dropped) == [
        'head.bias', 'head.weight', 'norm.bias', 'norm.weight'
    ]  # fmt: skip
    assert report.values_verified


def test_every_tensor_is_accounted_for():
    state = meta_state(shapes_of('official-cls', 'svt-s'))

    _, report = convert_state_dict(state)

    used = report.unchanged + report.renamed + report.merged
    assert used + len(report.dropped) == len(state)
    assert report.merged == sum(
        '.attn.q.' in name or '.attn.kv.' in name for name in state
    )


def test_query_key_and_value_keep_their_order():
    state = random_state(shapes_of('official-cls', 'pcpvt-s'))

    converted, _ = convert_state_dict(state)

    merged = converted['layers.1.2.attn.attn.in_proj_weight']
    assert torch.equal(merged[:128], state['blocks.1.2.attn.q.weight'])
    assert torch.equal(merged[128:], state['blocks.1.2.attn.kv.weight'])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_values_are_never_cast(dtype):
    state = random_state(shapes_of('official-cls', 'svt-s'), dtype)
    state['blocks.0.0.norm1.weight'] = state['blocks.0.0.norm1.weight'].float()

    converted, report = convert_state_dict(state)

    assert report.values_verified
    types = {name: tensor.dtype for name, tensor in converted.items()}
    assert types.pop('layers.0.0.norm1.weight') == torch.float32
    assert set(types.values()) == {dtype}


def test_what_is_not_merged_shares_memory_with_the_source():
    state = random_state(shapes_of('official-cls', 'pcpvt-s'))

    converted, _ = convert_state_dict(state)

    source = state['blocks.0.0.mlp.fc1.weight']
    assert converted['layers.0.0.ffn.layers.0.0.weight'].data_ptr() == source.data_ptr()


@pytest.mark.parametrize('to', ['mmseg', 'official'])
@pytest.mark.parametrize(
    'layout', ['ssseg-upernet', 'mmseg-upernet', 'mmseg-fpn', 'official-upernet']
)
def test_backbone_only_leaves_the_heads(layout, to):
    state = meta_state(shapes_of(layout, 'svt-s'))

    converted, report = convert_state_dict(state, to=to, backbone_only=True)

    wanted = shapes_of('mmseg' if to == 'mmseg' else 'official-seg', 'svt-s')
    names = {name for name in wanted if name.split('.')[0] not in ('head', 'norm')}
    assert set(converted) == names
    assert report.heads is None
    assert len(state) == len(report.dropped) + report.unchanged + (
        report.renamed + report.merged + report.split // 2
    )


def test_backbone_of_an_unknown_segmentor_can_be_taken():
    state = meta_state(shapes_of('mmseg', 'svt-s'))
    state = {f'backbone.{name}': tensor for name, tensor in state.items()}
    state['decode_head.linear_fuse.conv.weight'] = torch.empty(256, 9, device='meta')

    with pytest.raises(CheckpointError, match=r'decode_head\.linear_fuse.*--backbone-'):
        convert_state_dict(state)
    converted, _ = convert_state_dict(state, backbone_only=True)

    assert converted.keys() == shapes_of('mmseg', 'svt-s').keys()


def test_sssegmentation_gets_the_config_with_its_auxiliary_head():
    for variant in ('pcpvt-s', 'svt-b'):
        _, report = convert_state_dict(meta_state(shapes_of('ssseg-upernet', variant)))

        assert report.heads.auxiliary_channels == 512
        assert report.config() == f'twins_{variant}_uperhead_8x2_512x512_130e_ade20k.py'
        assert report.options() == []


@pytest.mark.parametrize(
    ('layout', 'variant', 'config'),
    [
        ('mmseg-upernet', 'pcpvt-s', 'uperhead_8x4_512x512_160k_ade20k'),
        ('official-upernet', 'svt-l', 'uperhead_8x2_512x512_160k_ade20k'),
        ('mmseg-fpn', 'pcpvt-b', 'fpn_fpnhead_8x4_512x512_80k_ade20k'),
    ],
)
def test_segmentor_gets_the_config_that_fits(layout, variant, config):
    _, report = convert_state_dict(meta_state(shapes_of(layout, variant)))

    assert report.config() == f'twins_{variant}_{config}.py'
    assert report.options() == []


def test_other_classes_and_widths_are_options_of_the_config():
    shapes = shapes_of('mmseg-upernet', 'svt-s')
    for name, shape in shapes.items():
        if '.conv_seg.' in name:
            shapes[name] = (19, *shape[1:])

    _, report = convert_state_dict(meta_state(shapes))

    assert report.options() == [
        'model.decode_head.num_classes=19',
        'model.auxiliary_head.num_classes=19',
    ]


def test_converted_input_passes_through_verified():
    state = random_state(shapes_of('mmseg', 'svt-s'))

    converted, report = convert_state_dict(state)

    assert report.unchanged == len(state)
    assert report.values_verified
    assert all(converted[name] is not None for name in state)
    assert all(torch.equal(converted[name], state[name]) for name in state)


def test_mmsegmentations_own_conversion_passes_with_its_leftover_norm():
    # Its converter drops the head and leaves the norm before it.
    state = meta_state(shapes_of('mmseg', 'svt-s'))
    state = {name: t for name, t in state.items() if not name.startswith('norm_list.')}
    state['norm.weight'] = state['norm.bias'] = torch.empty(512, device='meta')

    converted, report = convert_state_dict(state)

    assert report.dropped == ('norm.weight', 'norm.bias')
    assert len(report.missing) == 8
    assert 'norm.weight' not in converted


def test_arch_is_an_assertion():
    state = meta_state(shapes_of('official-cls', 'pcpvt-b'))

    convert_state_dict(state, arch='pcpvt-b')
    with pytest.raises(CheckpointError, match='this is pcpvt-b .* not svt-l'):
        convert_state_dict(state, arch='svt-l')


@pytest.mark.parametrize('arguments', [{'arch': 'svt'}, {'to': 'timm'}])
def test_unknown_arguments_are_named(arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=f'{name}={value!r}; give one of'):
        convert_state_dict({}, **arguments)


def test_weights_whose_outputs_are_not_finite_are_refused():
    state = random_state(shapes_of('official-cls', 'pcpvt-s'))
    state['blocks.3.0.mlp.fc2.weight'].fill_(3e38)

    with pytest.raises(CheckpointError, match='forward pass .* stage 3'):
        convert_state_dict(state)


def test_report_is_a_short_table():
    _, report = convert_state_dict(meta_state(shapes_of('official-cls', 'svt-s')))

    lines = str(report).splitlines()

    assert len(lines) < 15
    assert lines[0].split() == ['found', 'official', 'classifier,', 'svt-s']
    assert any(line.split()[:2] == ['merged', '36'] for line in lines)
    assert any(line.split()[:2] == ['dropped', '4'] for line in lines)
    assert any(line.split()[:2] == ['missing', '8'] for line in lines)
