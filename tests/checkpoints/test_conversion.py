"""What a conversion finds, does, reports and writes."""

from __future__ import annotations

import pytest
import torch
from mmengine.runner import CheckpointLoader
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from builders import meta_state, random_state, shapes_of
from mmseg_twins import __version__
from mmseg_twins.checkpoints.conversion import convert_checkpoint, convert_state_dict
from mmseg_twins.checkpoints.reading import read_source, sha256
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
    assert 'finite values' in report.verified


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

    assert 'a forward pass' in report.verified
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


@pytest.mark.parametrize(
    ('layout', 'variant', 'config'),
    [
        ('mmseg-upernet', 'pcpvt-s', 'uperhead_8x4_512x512_160k_ade20k'),
        ('official-upernet', 'svt-l', 'uperhead_8x2_512x512_160k_ade20k'),
        ('mmseg-fpn', 'pcpvt-b', 'fpn_fpnhead_8x4_512x512_80k_ade20k'),
        ('ssseg-upernet', 'pcpvt-s', 'uperhead_8x2_512x512_130e_ade20k'),
        ('ssseg-upernet', 'svt-b', 'uperhead_8x2_512x512_130e_ade20k'),
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
        shapes[name] = tuple(192 if size == 256 else size for size in shapes[name])
    backbone = shapes_of('mmseg', 'svt-s')
    shapes |= {f'backbone.{name}': shape for name, shape in backbone.items()}
    shapes['decode_head.lateral_convs.2.conv.weight'] = (512, 256, 1, 1)
    shapes['auxiliary_head.convs.0.conv.weight'] = (192, 256, 3, 3)

    _, report = convert_state_dict(meta_state(shapes))

    assert report.options() == [
        'model.decode_head.num_classes=19',
        'model.auxiliary_head.channels=192',
        'model.auxiliary_head.num_classes=19',
    ]


def test_a_missing_auxiliary_head_is_an_option_of_the_config():
    shapes = shapes_of('mmseg-upernet', 'svt-s')
    state = meta_state(shapes)
    state = {name: t for name, t in state.items() if not name.startswith('auxiliary')}

    assert convert_state_dict(state)[1].options() == ['model.auxiliary_head=None']


def test_converted_input_passes_through_verified():
    state = random_state(shapes_of('mmseg', 'svt-s'))

    converted, report = convert_state_dict(state)

    assert report.unchanged == len(state)
    assert 'a forward pass' in report.verified
    assert converted.keys() == state.keys()
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


def test_the_variant_is_an_assertion():
    state = meta_state(shapes_of('official-cls', 'pcpvt-b'))

    convert_state_dict(state, variant='pcpvt-b')
    with pytest.raises(CheckpointError, match='the checkpoint is pcpvt-b .* not svt-l'):
        convert_state_dict(state, variant='svt-l')


@pytest.mark.parametrize('arguments', [{'variant': 'svt'}, {'to': 'timm'}])
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


# --- files


def test_converted_classifier_initializes_the_backbone(classifier, store):
    convert_checkpoint(classifier, store)

    backbone = SVT(
        arch='small', init_cfg=dict(type='Pretrained', checkpoint=str(store))
    )
    backbone.init_weights()

    source = read_source(classifier).state
    weight = backbone.layers[0][0].ffn.layers[0][0].weight
    assert torch.equal(weight, source['blocks.0.0.mlp.fc1.weight'].float())


def test_written_file_says_what_it_is(classifier, store):
    convert_checkpoint(classifier, store)

    written = torch.load(store, weights_only=True)

    assert set(written) == {'meta', 'state_dict'}
    meta = written['meta']
    assert meta['source'] == str(classifier)
    assert meta['source_sha256'] == sha256(classifier)
    assert meta['layout'] == 'official classifier'
    assert meta['variant'] == 'svt-s'
    assert meta['tool'] == f'mmseg_twins {__version__}'
    assert set(meta['dropped']) == {
        'head.weight', 'head.bias', 'norm.weight', 'norm.bias'
    }  # fmt: skip
    assert meta['missing'][0] == 'norm_list.0.weight'
    assert meta['wrapper'] == 'model'
    assert meta['left_out'] == ['optimizer', 'lr_scheduler', 'epoch', 'args']


def test_safetensors_of_timm_is_read_and_written(store, tmp_path):
    # timm's twins_* have the official classifier's names.
    state = random_state(shapes_of('official-cls', 'pcpvt-s'), torch.float16)
    source = tmp_path / 'model.safetensors'
    save_file(state, source)
    store = store.with_suffix('.safetensors')

    report = convert_checkpoint(source, store)

    assert report.found == 'official classifier'
    written = load_file(store)
    assert written.keys() == shapes_of('mmseg', 'pcpvt-s').keys()
    name = 'blocks.0.0.mlp.fc1.weight'
    assert torch.equal(written['layers.0.0.ffn.layers.0.0.weight'], state[name])
    with safe_open(store, framework='pt') as file:
        assert '"variant": "pcpvt-s"' in file.metadata()['meta']


def test_both_formats_hold_the_same_bits(classifier, store):
    other = store.with_suffix('.safetensors')
    convert_checkpoint(classifier, store)
    convert_checkpoint(classifier, other)

    first, second = read_source(store), read_source(other)

    assert first.state.keys() == second.state.keys()
    assert all(
        torch.equal(first.state[name], second.state[name]) for name in first.state
    )
    assert first.meta == second.meta


def test_classes_and_colors_of_a_segmentor_are_kept(store, tmp_path):
    state = random_state(shapes_of('mmseg-fpn', 'svt-s'), torch.bfloat16)
    source = tmp_path / 'source.pth'
    meta = {'CLASSES': ('wall', 'sky'), 'PALETTE': [[1, 2, 3], [4, 5, 6]], 'epoch': 1}
    torch.save({'meta': meta, 'state_dict': state}, source)

    convert_checkpoint(source, store)

    dataset = read_source(store).meta['dataset_meta']
    assert dataset == {'classes': ['wall', 'sky'], 'palette': [[1, 2, 3], [4, 5, 6]]}
    # What mmengine reads has nothing that PyTorch does not allow by itself.
    assert CheckpointLoader.load_checkpoint(str(store))['meta']['dataset_meta']
