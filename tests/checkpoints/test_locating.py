"""Published weights by name: provided, kept, or from the first good source."""

from __future__ import annotations

import hashlib
import io
import threading

import pytest
import torch
from huggingface_hub import constants
from mmengine.runner import CheckpointLoader
from safetensors.torch import save

from builders import random_state, shapes_of
from mmseg_twins.checkpoints import downloading, locating, weights
from mmseg_twins.checkpoints.locating import locate
from mmseg_twins.checkpoints.reading import read_source
from mmseg_twins.checkpoints.weights import WEIGHTS, find_weights
from mmseg_twins.errors import CheckpointError, SettingError
from mmseg_twins.models.backbones import SVT

HUB_FILE = 'hub/timm/twins_svt_small.in1k/resolve/main/model.safetensors'
MIRROR_FILE = (
    'mmassets.onedl.ai/mmsegmentation/v0.5/pretrain/twins/'
    'alt_gvt_small_20220308-7e1c3695.pth'
)
SEGMENTOR_FILE = (
    'github.com/SegmentationBLWX/modelstore/releases/download/ssseg_twins/'
    'upernet_svtsmall_ade20k_train.pth'
)


@pytest.fixture
def hosts(weight_hosts, tmp_path, monkeypatch):
    """The hosts of published weights, empty caches, and digests that are not known."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.delenv(locating.FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', tmp_path / 'hub')
    monkeypatch.setattr(downloading, 'TIMEOUT', 0.5)
    monkeypatch.setattr(downloading, 'HASH', downloading.DIGEST)  # not in names
    monkeypatch.setitem(WEIGHTS, 'svt-s', without_digest(WEIGHTS['svt-s']))
    return weight_hosts


def without_digest(known: weights.Weights) -> weights.Weights:
    files = tuple(weights.File(file.url) for file in known.files)
    return weights.Weights(**{**vars(known), 'files': files})


@pytest.fixture(scope='module')
def timm_file() -> bytes:
    """A classifier with timm's names."""
    return save(random_state(shapes_of('official-cls', 'svt-s')))


@pytest.fixture(scope='module')
def mmseg_file() -> bytes:
    """A backbone of mmsegmentation, as its host has it."""
    return saved({'state_dict': random_state(shapes_of('mmseg', 'svt-s'))})


@pytest.fixture(scope='module')
def segmentor_file() -> bytes:
    """A segmentor of SSSegmentation."""
    return saved({'model': random_state(shapes_of('ssseg', 'svt-s'))})


def saved(content: dict) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def kept(tmp_path) -> list[str]:
    folder = tmp_path / 'torch/hub/checkpoints/mmseg_twins'
    return sorted(path.name for path in folder.glob('[!.]*'))


def test_a_backbone_comes_from_the_hub_and_is_kept_converted(
    hosts, timm_file, tmp_path
):
    hosts.files[HUB_FILE] = timm_file

    first, second = locate('twins://svt-s'), locate('twins://svt-s')

    assert first == second
    assert kept(tmp_path) == ['svt-s.safetensors']
    assert hosts.asked[HUB_FILE] == 1
    missing, unexpected = SVT(arch='small').load_state_dict(
        read_source(first).state, strict=False
    )
    assert unexpected == []
    assert all(name.startswith('norm_list.') for name in missing)


def test_a_segmentor_of_another_project_arrives_in_mmsegmentations_layout(
    hosts, segmentor_file
):
    hosts.files[SEGMENTOR_FILE] = segmentor_file

    found = read_source(locate('twins://upernet-svt-s-ade20k'))

    assert 'decode_head.psp_modules.0.1.conv.weight' in found.state
    assert found.meta['source'].endswith('upernet_svtsmall_ade20k_train.pth')


@pytest.mark.parametrize(
    ('mood', 'reason'),
    [
        (None, 'HTTP 404'),
        ('page', 'hub could not be downloaded'),
        ('hang', 'timed out'),
        ('wrong', 'expected hash'),
        ('busy', 'HTTP 503'),
    ],
)
def test_another_source_is_tried_where_the_hub_fails(
    mood, reason, hosts, timm_file, mmseg_file, tmp_path, capsys
):
    hosts.moods['hub'] = mood
    if mood:
        hosts.files[HUB_FILE] = timm_file
    hosts.files[MIRROR_FILE] = mmseg_file

    locate('twins://svt-s')

    assert kept(tmp_path) == ['svt-s.safetensors']
    assert 'mmassets.onedl.ai' in capsys.readouterr().err
    del hosts.files[MIRROR_FILE]
    (tmp_path / 'torch/hub/checkpoints/mmseg_twins/svt-s.safetensors').unlink()
    with pytest.raises(CheckpointError, match=reason):
        locate('twins://svt-s')


@pytest.mark.parametrize(
    ('mood', 'reason'),
    [
        (None, '404'),
        ('page', 'it looks like a web page'),
        ('hang', 'timed out'),
        ('cut', 'ended after'),
        ('wrong', 'is not a checkpoint'),
        ('busy', '503'),
    ],
)
def test_one_sentence_names_each_source_and_what_helps(
    mood, reason, hosts, segmentor_file, tmp_path
):
    hosts.moods['github.com'] = mood
    if mood:
        hosts.files[SEGMENTOR_FILE] = segmentor_file

    with pytest.raises(CheckpointError, match=reason) as raised:
        locate('twins://upernet-svt-s-ade20k')

    sentence = str(raised.value)
    assert 'upernet_svtsmall_ade20k_train.pth' in sentence
    assert 'copy its file upernet-svt-s-ade20k.safetensors to ' in sentence
    assert sentence.endswith(f' {tmp_path}/torch/hub/checkpoints')
    assert '\n' not in sentence
    assert kept(tmp_path) == []


def test_random_weights_are_offered_where_no_backbone_can_be_had(hosts):
    with pytest.raises(CheckpointError, match='init_cfg=None') as raised:
        locate('twins://svt-s')

    for host in ('hub', 'rwightman', 'mmassets.onedl.ai', 'download.openmmlab.com'):
        assert host in str(raised.value)


def test_a_wrong_digest_is_refused(hosts, timm_file, monkeypatch, tmp_path):
    hosts.files[HUB_FILE] = timm_file
    url = f'{weights.HUB}timm/twins_svt_small.in1k/model.safetensors'
    files = (weights.File(url, '0' * 64),)
    known = {**vars(find_weights('svt-s')), 'files': files}
    monkeypatch.setitem(WEIGHTS, 'svt-s', weights.Weights(**known))

    with pytest.raises(CheckpointError, match='expected hash'):
        locate('twins://svt-s')

    assert kept(tmp_path) == []


@pytest.mark.parametrize('name', ['svt-s.pth', 'alt_gvt_small_20220308-7e1c3695.pth'])
@pytest.mark.parametrize('place', ['variable', 'cache'])
def test_a_file_that_the_user_provides_comes_first(
    place, name, hosts, mmseg_file, tmp_path, monkeypatch
):
    folder = tmp_path / 'torch/hub/checkpoints'
    if place == 'variable':
        folder = tmp_path / 'mine'
        monkeypatch.setenv(locating.FOLDER_VARIABLE, str(folder))
    folder.mkdir(parents=True)
    (folder / name).write_bytes(mmseg_file)

    found = read_source(locate('twins://svt-s'))

    digest = hashlib.sha256(mmseg_file).hexdigest()
    assert kept(tmp_path) == [f'svt-s-{digest[:8]}.safetensors']
    assert found.meta['source_sha256'] == digest
    assert not hosts.asked[HUB_FILE]


def test_a_provided_file_of_another_variant_is_refused(
    hosts, mmseg_file, tmp_path, monkeypatch
):
    monkeypatch.setenv(locating.FOLDER_VARIABLE, str(tmp_path))
    (tmp_path / 'svt-b.pth').write_bytes(mmseg_file)

    with pytest.raises(CheckpointError, match='the checkpoint is svt-s .*, not svt-b'):
        locate('twins://svt-b')


def test_a_provided_backbone_is_no_segmentor(hosts, mmseg_file, tmp_path, monkeypatch):
    monkeypatch.setenv(locating.FOLDER_VARIABLE, str(tmp_path))
    (tmp_path / 'upernet-svt-s-ade20k.pth').write_bytes(mmseg_file)

    with pytest.raises(CheckpointError, match='without the heads of'):
        locate('twins://upernet-svt-s-ade20k')

    assert kept(tmp_path) == []


def test_several_processes_fetch_once(hosts, timm_file):
    hosts.files[HUB_FILE] = timm_file
    threads = [threading.Thread(target=locate, args=['twins://svt-s']) for _ in 'abc']
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert hosts.asked[HUB_FILE] == 1


def test_offline_only_the_hubs_cache_is_used(hosts, timm_file, monkeypatch, tmp_path):
    hosts.files[HUB_FILE] = timm_file
    kept_file = locate('twins://svt-s')
    kept_file.unlink()
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)

    locate('twins://svt-s')

    assert hosts.asked[HUB_FILE] == 1


def test_a_dead_url_of_known_weights_is_referred_to_their_name(hosts):
    with pytest.raises(CheckpointError, match='twins://svt-s names the same'):
        locate(f'{hosts.address}/{MIRROR_FILE}')


def test_a_folder_that_cannot_be_made_is_one_sentence(hosts, tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'file'))

    with pytest.raises(CheckpointError, match='set TORCH_HOME to a folder'):
        locate('twins://svt-s')


def test_mmengine_loads_published_weights(hosts, timm_file):
    hosts.files[HUB_FILE] = timm_file

    loaded = CheckpointLoader.load_checkpoint('twins://svt-s')

    assert 'layers.0.0.attn.qkv.weight' in loaded['state_dict']


def test_an_unknown_name_proposes_similar_ones():
    with pytest.raises(SettingError, match='did you mean twins://svt-s'):
        locate('twins://svt-small')


def test_names_tell_what_they_stand_for():
    assert len(WEIGHTS) == 24
    for name, known in WEIGHTS.items():
        assert known.name == name
        assert known.variant in name
        assert known.files
