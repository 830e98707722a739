"""How checkpoint files are read and written."""

from __future__ import annotations

import argparse
import os
import resource

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from builders import cheap_state, random_state, shapes_of
from mmseg_twins import __version__
from mmseg_twins.checkpoints import writing
from mmseg_twins.checkpoints.conversion import convert_checkpoint
from mmseg_twins.checkpoints.reading import read_source, sha256
from mmseg_twins.errors import CheckpointError
from mmseg_twins.models.backbones import SVT


def load(path):
    return torch.load(path, weights_only=True)


def test_converted_classifier_initializes_the_backbone(classifier, store):
    convert_checkpoint(classifier, store)

    backbone = SVT(
        arch='small', init_cfg=dict(type='Pretrained', checkpoint=str(store))
    )
    backbone.init_weights()

    source = load_model(classifier)
    weight = backbone.layers[0][0].ffn.layers[0][0].weight
    assert torch.equal(weight, source['blocks.0.0.mlp.fc1.weight'].float())


def load_model(path) -> dict:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return load(path)['model']


def test_written_file_says_what_it_is(classifier, store):
    convert_checkpoint(classifier, store)

    written = load(store)

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

    state, tensors = load(store)['state_dict'], load_file(other)

    assert state.keys() == tensors.keys()
    assert all(torch.equal(state[name], tensors[name]) for name in state)


def test_meta_survives_a_safetensors_file(classifier, store):
    other = store.with_suffix('.safetensors')
    convert_checkpoint(classifier, other)

    source = read_source(other)

    assert source.meta['source_sha256'] == sha256(classifier)


@pytest.mark.parametrize('wrapper', [None, 'model', 'state_dict'])
@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_wrappers_and_formats_are_read(wrapper, zipped, tmp_path):
    state = {'a': torch.arange(3.0), 'b': torch.zeros(2)}
    content = {wrapper: state, 'epoch': 3} if wrapper else state
    path = tmp_path / 'file.bin'
    torch.save(content, path, _use_new_zipfile_serialization=zipped)

    source = read_source(path)

    assert source.wrapper == wrapper
    assert source.others == (('epoch',) if wrapper else ())
    assert torch.equal(source.state['a'], state['a'])


def test_harmless_classes_of_real_checkpoints_are_read(tmp_path):
    content = {
        'state_dict': {'a': torch.zeros(1)},
        'args': argparse.Namespace(lr=0.1),
        'message_hub': {'log_scalars': {'train/loss': HistoryBuffer([1.0], [1])}},
        'best': np.float64(0.5),
        'curve': np.arange(3),
    }
    path = tmp_path / 'file.pth'
    torch.save(content, path)

    assert 'args' in read_source(path).others


def test_namespace_is_allowed_for_the_converter_alone(classifier, store):
    convert_checkpoint(classifier, store)

    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_averaged_weights_are_taken_on_demand(tmp_path):
    path = tmp_path / 'file.pth'
    torch.save(
        {'model': {'a': torch.zeros(1)}, 'model_ema': {'a': torch.ones(1)}}, path
    )

    assert read_source(path).state['a'] == 0
    assert read_source(path, use_ema=True).state['a'] == 1
    torch.save({'model': {'a': torch.zeros(1)}}, path)
    with pytest.raises(CheckpointError, match="--use-ema: .* it has 'model'"):
        read_source(path, use_ema=True)


def test_classes_and_colors_of_a_segmentor_are_kept(store, tmp_path):
    state = random_state(shapes_of('mmseg-fpn', 'svt-s'), torch.bfloat16)
    source = tmp_path / 'source.pth'
    meta = {'CLASSES': ('wall', 'sky'), 'PALETTE': [[1, 2, 3], [4, 5, 6]], 'epoch': 1}
    torch.save({'meta': meta, 'state_dict': state}, source)

    convert_checkpoint(source, store)

    dataset = load(store)['meta']['dataset_meta']
    assert dataset == {'classes': ['wall', 'sky'], 'palette': [[1, 2, 3], [4, 5, 6]]}
    # What mmengine reads has nothing that PyTorch does not allow by itself.
    assert CheckpointLoader.load_checkpoint(str(store))['meta']['dataset_meta']


def test_tensors_that_share_memory_are_written_apart(tmp_path):
    whole = torch.arange(1_000_000.0)
    state = {'a': whole[:2], 'b': whole[1:3], 'c': whole[2:4]}
    path = tmp_path / 'x.pth'

    writing.write_checkpoint(path, state, {}, force=False)

    assert path.stat().st_size < 10_000
    assert all(
        torch.equal(load(path)['state_dict'][name], state[name]) for name in state
    )


def test_existing_store_is_replaced_only_by_force(classifier, store):
    store.write_text('precious')

    with pytest.raises(FileExistsError, match='--force'):
        convert_checkpoint(classifier, store)
    assert store.read_text() == 'precious'

    convert_checkpoint(classifier, store, force=True)
    assert 'state_dict' in load(store)


def test_a_link_stays_a_link(store, tmp_path):
    real = tmp_path / 'elsewhere.pth'
    real.write_text('old')
    store.symlink_to(real)

    writing.write_checkpoint(store, {'a': torch.zeros(1)}, {}, force=True)

    assert store.is_symlink()
    assert 'state_dict' in load(real)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_full_disk_leaves_the_old_store_and_no_debris(store, suffix):
    store = store.with_suffix(suffix)
    store.write_text('precious')
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A limit on the size of files ends a write half-way, as a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match=r'could not be written \(.*File too large'):
            writing.write_checkpoint(
                store, {'a': torch.rand(1_000_000)}, {}, force=True
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert store.read_text() == 'precious'
    assert os.listdir(store.parent) == [store.name]


def test_a_tensor_without_values_is_refused(store, tmp_path):
    source = tmp_path / 'meta.pth'
    state = cheap_state(shapes_of('official-cls', 'svt-s'))
    torch.save({name: tensor.to('meta') for name, tensor in state.items()}, source)

    with pytest.raises(CheckpointError, match='no values'):
        convert_checkpoint(source, store)
    assert not store.exists()
