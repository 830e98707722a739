"""Bad input: one clear sentence, exit status 1, nothing written or replaced."""

from __future__ import annotations

import io
import os
import pickle
import re
import signal
import zipfile
from pathlib import Path

import pytest
import torch
from mmengine.logging import HistoryBuffer
from safetensors.torch import save_file

from builders import cheap_state, shapes_of
from mmseg_twins.checkpoints import writing
from mmseg_twins.cli.convert import main

CLASSIFIER = shapes_of('official-cls', 'svt-s')


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def edited(path: Path, **changes) -> Path:
    """A classifier of SVT-S with other tensors, without those that are None."""
    state = cheap_state(CLASSIFIER)
    for name, tensor in changes.items():
        if tensor is None:
            del state[name]
        else:
            state[name] = tensor
    return saved(path, state)


def named(path: Path, *names: str) -> Path:
    return saved(path, {name: torch.zeros(2, 2) for name in names})


def damaged(path: Path) -> Path:
    """A checkpoint with one flipped bit in a tensor."""
    saved(path, {'a': torch.zeros(100_000)})
    content = bytearray(path.read_bytes())
    content[200_000] ^= 1
    path.write_bytes(content)
    return path


def truncated(path: Path, content: object, **options) -> Path:
    torch.save(content, path, **options)
    path.write_bytes(path.read_bytes()[:-5000])
    return path


def zipped(path: Path) -> Path:
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('notes.txt', 'hello')
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def safe(path: Path, cut: int = 0) -> Path:
    save_file({'a': torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[: -cut or None])
    return path


def not_a_number(path: Path) -> Path:
    bad = torch.zeros(64)
    bad[3] = float('nan')
    return edited(path, **{'blocks.0.0.norm1.bias': bad})


def infinite(path: Path) -> Path:
    return edited(path, **{'patch_embeds.1.norm.bias': torch.full((128,), -torch.inf)})


def folder(path: Path) -> Path:
    path.mkdir()
    return path


RESNET = ('conv1.weight', 'bn1.weight', 'layer1.0.conv1.weight', 'fc.weight')
SWIN = (
    'patch_embed.proj.weight',
    'layers.0.blocks.0.norm1.weight',
    'layers.0.blocks.0.attn.relative_position_bias_table',
    'layers.0.blocks.0.attn.qkv.weight',
    'norm.weight',
    'head.weight',
)
PVT = (
    'pos_embed1',
    'patch_embed1.proj.weight',
    'patch_embed1.norm.weight',
    'block1.0.norm1.weight',
    'block1.0.attn.q.weight',
    'block1.0.attn.kv.weight',
    'block1.0.mlp.fc1.weight',
    'norm.weight',
    'head.weight',
)
IN_MMSEG = tuple(f'backbone.{name}' for name in RESNET) + (
    'decode_head.conv_seg.weight',
    'decode_head.fpn_bottleneck.conv.weight',
)

FILES = {
    'no such file': (lambda path: path, 'there is no file'),
    'folder': (folder, 'is a folder'),
    'empty': (lambda path: written(path, b''), 'is empty'),
    'text': (lambda path: written(path, b'hello world, no weights'), 'no checkpoint'),
    'text that begins like a pickle': (
        lambda path: written(path, b'comments\nare not\ncheckpoints\n'),
        'truncated, damaged or no checkpoint',
    ),
    'web page': (
        lambda path: written(path, b'<!DOCTYPE html><html>sign in</html>'),
        'looks like a web page',
    ),
    'truncated zip': (
        lambda path: truncated(path, {'a': torch.zeros(9999)}),
        'truncated or damaged',
    ),
    'truncated legacy': (
        lambda path: truncated(
            path, {'a': torch.zeros(9999)}, _use_new_zipfile_serialization=False
        ),
        'truncated, damaged or no checkpoint',
    ),
    'flipped bit': (damaged, 'does not match its checksum'),
    'truncated safetensors': (lambda path: safe(path, cut=100), 'truncated, damaged'),
    'zip': (zipped, 'no PyTorch checkpoint'),
    'list': (lambda path: saved(path, [torch.zeros(1)]), 'holds a list'),
    'no weights': (
        lambda path: saved(path, {'epoch': 3, 'optimizer': {}}),
        "no weights under state_dict or model; it has 'epoch', 'optimizer'",
    ),
    'only averaged weights': (
        lambda path: saved(path, {'model_ema': {'a': torch.zeros(1)}}),
        '--use-ema takes those of model_ema',
    ),
    'two sets of weights': (
        lambda path: saved(
            path, {'model': {'a': torch.zeros(1)}, 'state_dict': {'a': torch.ones(1)}}
        ),
        'under state_dict and model',
    ),
    'no tensors': (lambda path: saved(path, {'model': {}}), 'no Twins checkpoint'),
    'not only tensors': (
        lambda path: saved(path, {'model': {'a': torch.zeros(1), 'b': 3}}),
        "'b' is no tensor but int",
    ),
    'ResNet': (
        lambda path: named(path, *RESNET),
        "no Twins checkpoint.*'conv1.weight'",
    ),
    'Swin': (lambda path: named(path, *SWIN), 'no Twins checkpoint'),
    'PVT': (lambda path: named(path, *PVT), 'no Twins checkpoint'),
    'ResNet segmentor': (lambda path: named(path, *IN_MMSEG), 'no Twins checkpoint'),
    'one missing': (
        lambda path: edited(path, **{'blocks.2.9.norm2.bias': None}),
        r"svt-s, but 'blocks.2.9.norm2.bias' of shape \(256,\) is missing",
    ),
    'half of a merged pair missing': (
        lambda path: edited(path, **{'blocks.0.1.attn.kv.bias': None}),
        r"'blocks.0.1.attn.kv.bias' of shape \(128,\) is missing",
    ),
    'one extra': (
        lambda path: edited(path, **{'blocks.0.0.gamma': torch.zeros(64)}),
        r"'blocks.0.0.gamma' of shape \(64,\) is extra",
    ),
    'one of the wrong shape': (
        lambda path: edited(path, **{'pos_block.1.proj.0.weight': torch.zeros(128, 3)}),
        r"'pos_block.1.proj.0.weight' has shape \(128, 3\), expected \(128, 1, 3, 3\)",
    ),
    'part of the norms after stages': (
        lambda path: edited(path, **{'norm_list.0.weight': torch.zeros(64)}),
        "'norm_list.0.bias' of shape .* is missing",
    ),
    'two sources for one target': (
        lambda path: edited(
            path, **{'patch_embeds.0.projection.bias': torch.zeros(64)}
        ),
        "two sources for one target: 'patch_embeds.0.proj.bias' and "
        "'patch_embeds.0.projection.bias'",
    ),
    'one name with and without module': (
        lambda path: edited(path, **{'module.norm.bias': torch.zeros(512)}),
        "two sources for one target: 'norm.bias'",
    ),
    'NaN': (not_a_number, "'blocks.0.0.norm1.bias' holds 1 values .*NaN"),
    'infinity': (infinite, "'patch_embeds.1.norm.bias' holds 128 values"),
    'whole numbers': (
        lambda path: edited(path, **{'head.bias': torch.zeros(1000).byte()}),
        "'head.bias' is a tensor of torch.uint8",
    ),
    'counter for a weight': (
        lambda path: edited(path, **{'blocks.0.0.norm1.bias': torch.zeros(64).long()}),
        "'blocks.0.0.norm1.bias' is of torch.int64, expected torch.float32",
    ),
    'a name that is none': (
        lambda path: saved(path, {'model': {('a', 'b'): torch.zeros(1)}}),
        'an entry has a tuple for a name',
    ),
    'an endless name': (
        lambda path: edited(path, **{'x' * 100_000: torch.zeros(1)}),
        'an entry has a name of 100000 characters',
    ),
    'a tensor that claims what no file holds': (
        lambda path: edited(path, head=torch.zeros(1).expand(2**40)),
        r'claim 4\.1e\+03 GiB, of which there are',
    ),
    'sparse': (
        lambda path: edited(
            path, **{'blocks.0.0.norm1.bias': torch.zeros(64).to_sparse()}
        ),
        'sparse',
    ),
    'a block missing': (
        lambda path: edited(
            path,
            **{name: None for name in CLASSIFIER if name.startswith('blocks.2.9.')},
        ),
        'is missing; and 15 more tensors differ',
    ),
}


def refused(capsys, store: Path, *arguments: object, status: int = 1) -> str:
    """Runs the command on bad input; returns the sentence that it says."""
    before = sorted(store.parent.iterdir())
    content = store.read_bytes() if store.is_file() else None
    assert main([*map(str, arguments)]) == status
    out, err = capsys.readouterr()
    assert out == ''
    assert err.count('\n') == 1, err
    assert sorted(store.parent.iterdir()) == before
    assert (store.read_bytes() if store.is_file() else None) == content
    return err


@pytest.mark.parametrize('case', FILES)
def test_file_is_refused_in_a_sentence(case, tmp_path, store, capsys):
    make, message = FILES[case]
    source = make(tmp_path / 'source.pth')
    store.write_text('precious')

    sentence = refused(capsys, store, source, store, '--force')

    assert re.search(message, sentence), sentence
    assert str(source) in sentence


class Hostile:
    """Runs a shell command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f'touch {self.marker}',)


class HostileEval(Hostile):
    """Runs Python code when it is unpickled."""

    def __reduce__(self):
        return eval, (f'open({str(self.marker)!r}, "w")',)


class HostileGetattr(Hostile):
    """Gets at a function through the ``getattr`` that HistoryBuffer needs."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


def pickled(content: object, protocol: int) -> bytes:
    buffer = io.BytesIO()
    pickle.dump(content, buffer, protocol)
    return buffer.getvalue()


@pytest.mark.parametrize('kind', ['zip', 'legacy', 'pickle 0', 'pickle 2', 'pickle 4'])
def test_a_pickle_that_runs_code_does_not(kind, tmp_path, store, capsys):
    marker, source = tmp_path / 'it_ran', tmp_path / 'source.pth'
    content = {'model': cheap_state(CLASSIFIER), 'extra': Hostile(marker)}
    if kind in ('zip', 'legacy'):
        torch.save(content, source, _use_new_zipfile_serialization=kind == 'zip')
    else:
        source.write_bytes(pickled({'extra': Hostile(marker)}, int(kind[-1])))

    sentence = refused(capsys, store, source, store)

    assert not marker.exists()
    assert f'{os.system.__module__}.system' in sentence
    # That the marker would be there if it had run:
    pickle.loads(pickled(Hostile(marker), 2))
    assert marker.exists()


def test_every_name_that_a_pickle_asks_for_is_told(tmp_path, store, capsys):
    marker, source = tmp_path / 'it_ran', tmp_path / 'source.pth'
    content = [Hostile(marker), Hostile(marker), HostileEval(marker)]
    source.write_bytes(pickled(content, 4))

    sentence = refused(capsys, store, source, store)

    assert f'use builtins.eval, {os.system.__module__}.system, and' in sentence
    assert not marker.exists()


def test_getattr_reaches_nothing_but_history_buffers(tmp_path, store, capsys):
    source = saved(tmp_path / 'source.pth', {'x': HostileGetattr(tmp_path / 'it_ran')})

    sentence = refused(capsys, store, source, store)

    assert "asks for attribute '__init__'" in sentence


def test_a_whole_pickled_model_is_refused_by_name(tmp_path, store, capsys):
    source = saved(tmp_path / 'source.pth', torch.nn.Linear(2, 2))

    sentence = refused(capsys, store, source, store)

    assert 'torch.nn.modules.linear.Linear' in sentence


def test_arch_that_contradicts_the_file_is_told_what_it_is(tmp_path, store, capsys):
    source = edited(tmp_path / 'source.pth')

    sentence = refused(capsys, store, source, store, '--variant', 'pcpvt-l')

    assert 'this is svt-s (official classifier), not pcpvt-l' in sentence


def test_store_that_is_the_source_is_refused(tmp_path, store, capsys):
    edited(store)
    link = tmp_path / 'link.pth'
    link.symlink_to(store)

    for source in (store, link):
        sentence = refused(capsys, store, source, store, '--force')
        assert 'is the checkpoint that is read' in sentence


def test_existing_store_is_refused_without_force(tmp_path, store, capsys):
    store.write_text('precious')

    sentence = refused(capsys, store, edited(tmp_path / 'source.pth'), store)

    assert '--force replaces it' in sentence


def test_store_that_is_a_folder_is_refused(tmp_path, store, capsys):
    store.mkdir()

    sentence = refused(capsys, store, tmp_path / 'x.pth', store, '--force')

    assert 'is a folder' in sentence


def test_missing_folder_is_named(tmp_path, store, capsys):
    source = edited(tmp_path / 'source.pth')

    sentence = refused(capsys, store, source, store.parent / 'no' / 'store.pth')

    assert f'there is no folder {store.parent / "no"}' in sentence


def test_unwritable_folder_is_named(tmp_path, store, capsys):
    source = edited(tmp_path / 'source.pth')
    target = store.parent
    if os.geteuid() == 0:  # may write everywhere but where the kernel says no
        target = Path('/proc/self')
        if not target.is_dir():
            pytest.skip('no folder that the administrator cannot write to')
    target.chmod(0o555) if target == store.parent else None

    sentence = refused(capsys, store, source, target / 'store.pth')

    assert f'the folder {target} cannot be written to' in sentence


def test_full_disk_is_one_sentence(classifier, store, capsys, monkeypatch):
    def half(content, file):
        file.write(b'half of it')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(writing.torch, 'save', half)
    store.write_text('precious')

    sentence = refused(capsys, store, classifier, store, '--force')

    assert 'could not be written (No space left on device)' in sentence


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_interruption_leaves_the_old_store_and_no_debris(
    number, classifier, store, capsys, monkeypatch, request
):
    # A shell lets its jobs in the background ignore this one.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    def half(content, file):
        file.write(b'half of it')
        file.flush()
        os.kill(os.getpid(), number)

    monkeypatch.setattr(writing.torch, 'save', half)
    store.write_text('precious')

    arguments = (classifier, store, '--force')
    sentence = refused(capsys, store, *arguments, status=128 + number)

    assert 'nothing was written' in sentence


@pytest.mark.parametrize(
    'arguments',
    [
        [],
        ['source.pth'],
        ['source.pth', 'store.pt'],
        ['source.pth', 'store'],
        ['source.pth', 'store.pth', '--variant', 'svt-xl'],
        ['source.pth', 'store.pth', '--to', 'timm'],
        ['source.pth', 'store.pth', 'third.pth'],
    ],
    ids=' '.join,
)
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)

    assert exit_.value.code == 2
    assert 'usage: twins2mmseg' in capsys.readouterr().err
