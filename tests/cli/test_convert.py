"""The command ``twins2mmseg``: on bad input it prints a sentence and writes nothing."""

from __future__ import annotations

import io
import os
import pickle
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from mmengine.logging import HistoryBuffer
from safetensors.torch import save_file

from builders import cheap_state, shapes_of
from mmseg_twins.checkpoints import writing
from mmseg_twins.cli.convert import main

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / 'tools' / 'model_converters' / 'twins2mmseg.py'
CLASSIFIER = shapes_of('official-cls', 'svt-s')


def run(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        # Whether or not the package is installed.
        env=os.environ | {'PYTHONPATH': os.pathsep.join([str(ROOT), *sys.path[1:]])},
    )


def test_two_arguments_are_enough(classifier, store):
    done = run(classifier, store)

    assert done.returncode == 0, done.stderr
    assert done.stderr == ''
    assert 'official classifier, svt-s' in done.stdout
    assert str(store) in done.stdout
    assert 'state_dict' in torch.load(store, weights_only=True)


def test_failure_is_one_line_without_traceback(tmp_path, store):
    done = run(tmp_path / 'none.pth', store)

    assert (done.returncode, done.stdout) == (1, '')
    assert done.stderr == (
        f'twins2mmseg: error: there is no file {tmp_path / "none.pth"}\n'
    )


def test_the_former_name_of_an_option_still_works(classifier, store, capsys):
    assert main([str(classifier), str(store), '--arch', 'svt-s']) == 0
    assert '--arch is deprecated; use --variant' in capsys.readouterr().err


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


# --- bad files


def refused(capsys, store: Path, *arguments: object, status: int = 1) -> str:
    """Runs the command on bad input; returns the sentence that it prints."""
    before = sorted(store.parent.iterdir())
    content = store.read_bytes() if store.is_file() else None
    assert main([*map(str, arguments)]) == status
    out, err = capsys.readouterr()
    assert out == ''
    assert err.count('\n') == 1, err
    assert sorted(store.parent.iterdir()) == before
    assert (store.read_bytes() if store.is_file() else None) == content
    return err


def saved(content: object, *, cut: int = 0, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()[: -cut or None]


def edited(**changes) -> bytes:
    """A classifier of SVT-S with other tensors, without those that are None."""
    state = cheap_state(CLASSIFIER) | changes
    return saved({name: tensor for name, tensor in state.items() if tensor is not None})


def named(names: str) -> bytes:
    return saved({name: torch.zeros(2, 2) for name in names.split()})


def flipped_bit() -> bytes:
    content = bytearray(saved({'a': torch.zeros(100_000)}))
    content[200_000] ^= 1
    return bytes(content)


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        archive.writestr('notes.txt', 'hello')
    return buffer.getvalue()


def wide_segmentor() -> bytes:
    """A head of 2**13 channels, of which the file has none."""
    shapes = {
        name: tuple(2**13 if size == 128 and 'head' in name else size for size in shape)
        for name, shape in shapes_of('mmseg-fpn', 'svt-s').items()
    }
    return saved({'state_dict': cheap_state(shapes)})


ONE = {'a': torch.zeros(1)}
BIAS = 'blocks.0.0.norm1.bias'
RESNET = 'conv1.weight bn1.weight layer1.0.conv1.weight fc.weight'
SWIN = (
    'patch_embed.proj.weight layers.0.blocks.0.norm1.weight norm.weight head.weight '
    'layers.0.blocks.0.attn.relative_position_bias_table '
    'layers.0.blocks.0.attn.qkv.weight'
)
PVT = (
    'pos_embed1 patch_embed1.proj.weight patch_embed1.norm.weight norm.weight '
    'block1.0.norm1.weight block1.0.attn.q.weight block1.0.attn.kv.weight '
    'block1.0.mlp.fc1.weight head.weight'
)
IN_MMSEG = ' '.join(f'backbone.{name}' for name in RESNET.split())
NOT_TWINS = 'not a Twins checkpoint'
DAMAGED = 'truncated, damaged or not a checkpoint'
FILES = {
    'empty': (lambda: b'', 'is empty'),
    'text': (lambda: b'hello world, no weights', 'not a checkpoint'),
    'text that begins like a pickle': (lambda: b'comments\nare not\n', DAMAGED),
    'web page': (lambda: b'<!DOCTYPE html><html>sign in', 'looks like a web page'),
    'truncated zip': (lambda: saved({'a': torch.zeros(9999)}, cut=5000), DAMAGED),
    'truncated legacy': (
        lambda: saved(
            {'a': torch.zeros(9999)}, cut=5000, _use_new_zipfile_serialization=False
        ),
        DAMAGED,
    ),
    'flipped bit': (flipped_bit, 'does not match its checksum'),
    'zip': (zipped, 'a zip archive without data.pkl'),
    'list': (lambda: saved([torch.zeros(1)]), 'holds a list'),
    'no weights': (
        lambda: saved({'epoch': 3, 'optimizer': {}}),
        "no weights under state_dict or model; it has 'epoch', 'optimizer'",
    ),
    'only averaged weights': (
        lambda: saved({'model_ema': ONE}),
        '--use-ema takes those of model_ema',
    ),
    'two sets of weights': (
        lambda: saved({'model': ONE, 'state_dict': ONE}),
        'under state_dict and model',
    ),
    'no tensors': (lambda: saved({'model': {}}), NOT_TWINS),
    'not only tensors': (
        lambda: saved({'model': {**ONE, 'b': 3}}),
        "'b' is not a tensor but int",
    ),
    'a tensor without values': (
        lambda: edited(**{BIAS: torch.empty(64, device='meta')}),
        f'{BIAS!r} has a shape but no values',
    ),
    'ResNet': (lambda: named(RESNET), f"{NOT_TWINS}.*'conv1.weight'"),
    'Swin': (lambda: named(SWIN), NOT_TWINS),
    'PVT': (lambda: named(PVT), NOT_TWINS),
    'ResNet segmentor': (
        lambda: named(f'{IN_MMSEG} decode_head.conv_seg.weight'),
        NOT_TWINS,
    ),
    'one missing': (
        lambda: edited(**{'blocks.2.9.norm2.bias': None}),
        r'svt-s, but 1 tensor is missing \(blocks.2.9.norm2.bias\)',
    ),
    'half of a merged pair missing': (
        lambda: edited(**{'blocks.0.1.attn.kv.bias': None}),
        r'missing \(blocks.0.1.attn.kv.bias\)',
    ),
    'one extra': (
        lambda: edited(**{'blocks.0.0.gamma': torch.zeros(64)}),
        r'1 tensor is unexpected \(blocks.0.0.gamma\)',
    ),
    'one of the wrong shape': (
        lambda: edited(**{'pos_block.1.proj.0.weight': torch.zeros(128, 3)}),
        'proj.0.weight is 128x3 in the checkpoint and 128x1x3x3 in the model',
    ),
    'part of the norms after stages': (
        lambda: edited(**{'norm_list.0.weight': torch.zeros(64)}),
        r'missing \(norm_list.0.bias',
    ),
    'two sources for one target': (
        lambda: edited(**{'patch_embeds.0.projection.bias': torch.zeros(64)}),
        r'unexpected \(patch_embeds.0.projection.bias\)',
    ),
    'one name with and without module': (
        lambda: edited(**{'module.norm.bias': torch.zeros(512)}),
        "there are two tensors 'norm.bias'",
    ),
    'NaN': (
        lambda: edited(**{BIAS: torch.tensor([torch.nan, *[0.0] * 63])}),
        f'1 of the 64 values of {BIAS!r} are NaN',
    ),
    'infinity': (
        lambda: edited(**{BIAS: torch.full((64,), -torch.inf)}),
        f'64 of the 64 values of {BIAS!r}',
    ),
    'counter for a weight': (
        lambda: edited(**{BIAS: torch.zeros(64).long()}),
        f'{BIAS!r} has dtype torch.int64 .* expected .* torch.float32',
    ),
    'sparse': (lambda: edited(**{BIAS: torch.zeros(64).to_sparse()}), 'sparse'),
    'a name that is none': (
        lambda: saved({'model': {('a', 'b'): torch.zeros(1)}}),
        'the name of an entry is a tuple',
    ),
    'an endless name': (
        lambda: edited(**{'x' * 100_000: torch.zeros(1)}),
        'an entry has a name of 100000 characters',
    ),
    'tensors that claim what no file holds': (
        wide_segmentor,
        r'tensors claim .* GiB, but the file has only',
    ),
}


@pytest.mark.parametrize('case', FILES)
def test_file_is_refused_in_a_sentence(case, tmp_path, store, capsys):
    make, message = FILES[case]
    source = tmp_path / 'source.pth'
    source.write_bytes(make())
    store.write_text('precious')

    sentence = refused(capsys, store, source, store, '--force')

    assert re.search(message, sentence), sentence
    assert str(source) in sentence


def test_a_truncated_safetensors_file_is_refused(tmp_path, store, capsys):
    source = tmp_path / 'source.safetensors'
    save_file({'a': torch.zeros(1000)}, source)
    source.write_bytes(source.read_bytes()[:-100])

    assert 'truncated, damaged' in refused(capsys, store, source, store)


@pytest.mark.parametrize('option', ['--variant', '--arch'])
def test_another_variant_than_asked_for_is_named(option, tmp_path, store, capfd):
    source = tmp_path / 'source.pth'
    source.write_bytes(edited())

    assert main([str(source), str(store), option, 'pcpvt-l']) == 1
    assert 'is svt-s (official classifier), not pcpvt-l' in capfd.readouterr().err
    assert not store.exists()


# --- hostile files


class Hostile:
    """Calls a function when it is unpickled."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize('kind', ['zip', 'legacy', 'pickle 0', 'pickle 2', 'pickle 4'])
def test_a_pickle_that_runs_code_does_not(kind, tmp_path, store, capsys):
    marker, source = tmp_path / 'it_ran', tmp_path / 'source.pth'
    hostile = Hostile(os.system, f'touch {marker}')
    content = [hostile, Hostile(eval, f'open({str(marker)!r}, "w")'), hostile]
    if kind in ('zip', 'legacy'):
        content = {'model': cheap_state(CLASSIFIER), 'extra': content}
        torch.save(content, source, _use_new_zipfile_serialization=kind == 'zip')
    else:
        source.write_bytes(pickle.dumps(content, int(kind[-1])))

    sentence = refused(capsys, store, source, store)

    # Every name is told, once.
    assert f'refers to builtins.eval, {os.system.__module__}.system, and' in sentence
    assert not marker.exists()
    # That the marker would be there if it had run:
    pickle.loads(pickle.dumps(hostile))
    assert marker.exists()


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (Hostile(getattr, HistoryBuffer, '__init__'), "refers to attribute '__init__'"),
        (torch.nn.Linear(2, 2), 'refers to .*torch.nn.modules.linear.Linear'),
    ],
    ids=['getattr', 'a whole model'],
)
def test_what_is_refused_is_named(content, message, tmp_path, store, capsys):
    source = tmp_path / 'source.pth'
    torch.save({'model': content}, source)

    assert re.search(message, refused(capsys, store, source, store))


# --- what cannot be written


@pytest.mark.parametrize(
    ('target', 'message'),
    [
        ('store.pth', 'store.pth exists already; --force replaces it'),
        ('no/store.pth', 'there is no folder'),
        ('folder.pth', 'is a folder'),
    ],
)
def test_a_store_that_cannot_be_written_is_refused_before_the_source_is_read(
    target, message, store, capsys
):
    store.write_text('precious')
    (store.parent / 'folder.pth').mkdir()

    sentence = refused(capsys, store, 'none.pth', store.parent / target)

    assert message in sentence


def test_store_that_is_the_source_is_refused(tmp_path, store, capsys):
    store.write_bytes(edited())
    link = tmp_path / 'link.pth'
    link.symlink_to(store)

    for source in (store, link):
        sentence = refused(capsys, store, source, store, '--force')
        assert 'is the source itself' in sentence


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
    # A shell lets its background jobs ignore SIGINT.
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
