"""Published weights in the commands: fetched, used, or refused in one sentence."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save

from builders import ROOT, random_state, shapes_of
from mmseg_twins.checkpoints import weights as published
from mmseg_twins.checkpoints.reading import read_source
from mmseg_twins.checkpoints.weights import WEIGHTS
from mmseg_twins.cli import convert, main, predict, test, train, weights

HUB_FILE = 'hub/timm/twins_svt_small.in1k/resolve/main/model.safetensors'
SEGMENTOR_FILE = (
    'github.com/SegmentationBLWX/modelstore/releases/download/ssseg_twins/'
    'upernet_svtsmall_ade20k_train.pth'
)
CONFIG = """\
_base_ = {base!r}
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmseg_twins.SVT',
        arch='small',
        init_cfg=dict(type='Pretrained', checkpoint='twins://svt-s'),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
data_root = {data!r}
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False,
    dataset=dict(data_root=data_root),
)
val_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(data_root=data_root)
)
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=0.0, weight_decay=0.0))
param_scheduler = []
train_cfg = dict(max_iters=1, val_interval=9)
"""
ARGUMENTS = {
    'train': ['config.py'],
    'test': ['config.py', 'twins://upernet-svt-s-ade20k'],
    'predict': ['twins://upernet-svt-s-ade20k', 'image.png', '--out-dir', 'out'],
    'convert': ['twins://upernet-svt-s-ade20k', 'out.pth'],
}
COMMANDS = {
    'train': train.main,
    'test': test.main,
    'predict': predict.main,
    'convert': convert.main,
}


@pytest.fixture
def hosts(weight_hosts, scenes, tmp_path, monkeypatch):
    """The hosts of published weights, and a folder with a config for tiny scenes."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('HF_HOME', str(tmp_path / 'huggingface'))
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', tmp_path / 'hub')
    base = str(ROOT / 'configs/demo/twins_svt_fpn_streets.py')
    text = CONFIG.format(base=base, data=str(scenes))
    (tmp_path / 'config.py').write_text(text)
    image = next(scenes.glob('images/validation/*'))
    (tmp_path / 'image.png').write_bytes(image.read_bytes())
    monkeypatch.chdir(tmp_path)
    return weight_hosts


@pytest.fixture
def backbone(hosts, monkeypatch) -> dict[str, torch.Tensor]:
    """A classifier that the hub has under timm's names."""
    state = random_state(shapes_of('official-cls', 'svt-s'))
    hosts.files[HUB_FILE] = save(state)
    files = (published.File(WEIGHTS['svt-s'].files[0].url),)  # without its digest
    known = {**vars(WEIGHTS['svt-s']), 'files': files}
    monkeypatch.setitem(WEIGHTS, 'svt-s', published.Weights(**known))
    return state


@pytest.fixture
def segmentor(hosts) -> None:
    """A segmentor of SSSegmentation at its host."""
    file = io.BytesIO()
    torch.save({'model': random_state(shapes_of('ssseg', 'svt-s'))}, file)
    hosts.files[SEGMENTOR_FILE] = file.getvalue()


def run(name: str, capsys) -> tuple[int, str]:
    """The exit status of a command, and the last line on stderr."""
    try:
        status = COMMANDS[name](ARGUMENTS[name])
    except SystemExit as exited:
        status = exited.code
    return status, capsys.readouterr().err.strip().splitlines()[-1]


def test_training_starts_from_published_weights(backbone):
    assert train.main(['config.py']) == 0

    trained = read_source(Path('work_dirs/config/iter_1.pth')).state
    name = 'patch_embeds.0.proj'
    found = trained[f'backbone.{name}ection.weight']
    assert torch.equal(found, backbone[f'{name}.weight'])


def test_a_published_segmentor_predicts_with_its_own_config(segmentor):
    assert predict.main(ARGUMENTS['predict']) == 0

    assert Path('out/labels/image.png').is_file()
    assert Path('out/overlays/image.png').is_file()


def test_a_published_segmentor_is_converted(segmentor):
    assert convert.main(ARGUMENTS['convert']) == 0

    meta = read_source(Path('out.pth')).meta
    assert meta['source'] == 'twins://upernet-svt-s-ade20k'


@pytest.mark.parametrize('name', COMMANDS)
def test_where_no_source_answers_commands_end_in_one_sentence(name, hosts, capsys):
    status, sentence = run(name, capsys)

    assert status == (1 if name == 'convert' else 2)
    assert 'could not be downloaded: ' in sentence
    wanted = 'svt-s' if name == 'train' else 'upernet-svt-s-ade20k'
    assert f'run `mmseg-twins weights {wanted} --to FOLDER`' in sentence
    folder = Path('torch/hub/checkpoints').absolute()
    assert f'copy its file {wanted}.safetensors to {folder}' in sentence
    assert ('init_cfg=None' in sentence) == (name == 'train')


@pytest.mark.parametrize('name', ['test', 'predict', 'convert'])
def test_a_name_with_a_mistake_is_one_sentence(name, hosts, capsys, monkeypatch):
    wrong = [argument.replace('svt-s', 'svt-small') for argument in ARGUMENTS[name]]
    monkeypatch.setitem(ARGUMENTS, name, wrong)

    _, sentence = run(name, capsys)

    assert '; did you mean twins://' in sentence


@pytest.mark.slow
@pytest.mark.parametrize('mood', [None, 'page', 'hang'])
def test_mims_last_line_is_the_sentence(mood, hosts):
    for file in WEIGHTS['svt-s'].files:
        hosts.moods[file.url.split('/')[2]] = mood
    hosts.moods['hub'] = mood

    done = subprocess.run(
        [sys.executable, '-m', 'mim', 'train', 'mmsegmentation', 'config.py'],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ,
    )

    assert done.returncode != 0
    sentences = [
        line for line in done.stderr.splitlines() if 'could not be downloaded' in line
    ]
    assert sentences[-1].startswith('mmseg_twins.errors.CheckpointError: twins://svt-s')
    assert sentences[-1].endswith('or set init_cfg=None for random weights')


def test_weights_are_fetched_ahead_and_copied(backbone, capsys, monkeypatch, tmp_path):
    assert weights.main(['svt-s', '--to', 'copies']) == 0
    assert Path('copies/svt-s.safetensors').is_file()
    assert 'copies/svt-s.safetensors' in capsys.readouterr().out

    with pytest.raises(SystemExit):
        weights.main(['svt-s', '--to', 'copies'])
    assert 'exists already; --force replaces it' in capsys.readouterr().err

    # The copy serves a machine without internet.
    monkeypatch.setenv('MMSEG_TWINS_WEIGHTS', str(tmp_path / 'copies'))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'elsewhere'))
    monkeypatch.delitem(os.environ, 'HF_ENDPOINT')
    assert weights.main(['svt-s']) == 0


def test_the_list_says_what_is_here(backbone, capsys):
    assert main.main(['weights']) == 0
    before = capsys.readouterr().out
    weights.main(['svt-s'])
    capsys.readouterr()
    weights.main([])
    after = capsys.readouterr().out

    assert all(f'twins://{name} ' in before for name in WEIGHTS)
    assert 'downloaded' not in before
    (fetched,) = (line for line in after.splitlines() if 'downloaded' in line)
    assert fetched.startswith(' twins://svt-s ')


def test_an_unknown_command_is_named(capsys):
    with pytest.raises(SystemExit) as exited:
        main.main(['trian'])

    assert exited.value.code == 2
    assert "invalid choice: 'trian'" in capsys.readouterr().err
