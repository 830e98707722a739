"""Files are written atomically, and never replaced without ``force``."""

from __future__ import annotations

import errno
import os
import resource
import stat
from pathlib import Path

import pytest
import torch

from mmseg_twins.checkpoints.writing import check_writable, replacing, write_checkpoint


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)['state_dict']


@pytest.mark.parametrize(
    ('name', 'suffixes', 'error', 'message'),
    [
        ('.', [], IsADirectoryError, 'is a folder; give the name of a file'),
        ('a.txt', ['.pth'], ValueError, 'a.txt does not end in .pth'),
        ('a.txt', ['.a', '.b'], ValueError, 'a.txt does not end in .a or .b'),
        ('taken', [], FileExistsError, 'taken exists already; --force replaces it'),
        ('no/a.pth', [], FileNotFoundError, 'there is no folder .*no; create it first'),
    ],
)
def test_what_cannot_be_written_is_one_sentence(store, name, suffixes, error, message):
    (store.parent / 'taken').touch()
    with pytest.raises(error, match=message):
        check_writable(store.parent / name, force=False, suffixes=suffixes)


def test_what_can_be_written_is_left_as_it_was(store):
    check_writable(store, force=False, suffixes=['.pth'])
    assert os.listdir(store.parent) == []

    store.touch()
    check_writable(store, force=True)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    folder = tmp_path
    if os.geteuid() == 0:  # may write everywhere but where the kernel says no
        folder = Path('/proc/self')
        if not folder.is_dir():
            pytest.skip('no folder that the administrator cannot write to')
    else:
        folder.chmod(0o555)

    with pytest.raises(OSError, match=f'the folder {folder} cannot be written to'):
        check_writable(folder / 'file.pth', force=False)


def test_what_fails_leaves_the_file_as_it_was(store):
    store.write_text('precious')
    with pytest.raises(RuntimeError), replacing(store, force=True) as temporary:
        temporary.write_text('half')
        raise RuntimeError

    assert store.read_text() == 'precious'
    assert os.listdir(store.parent) == [store.name]


def test_a_file_that_appears_meanwhile_is_left_alone(store):
    with (
        pytest.raises(FileExistsError, match='was created meanwhile'),
        replacing(store, force=False) as temporary,
    ):
        temporary.write_text('new')
        store.write_text('precious')

    assert store.read_text() == 'precious'
    assert os.listdir(store.parent) == [store.name]


def test_file_systems_without_hard_links_will_do(store, monkeypatch):
    def no_links(*args, **kwargs):
        raise OSError(errno.EPERM, 'Operation not permitted')

    monkeypatch.setattr(os, 'link', no_links)
    with replacing(store, force=False) as temporary:
        temporary.write_text('new')

    assert store.read_text() == 'new'
    assert os.listdir(store.parent) == [store.name]


def test_new_files_get_the_usual_permissions(store):
    before = os.umask(0o027)
    try:
        with replacing(store, force=False) as temporary:
            temporary.write_text('new')
    finally:
        os.umask(before)

    assert stat.S_IMODE(store.stat().st_mode) == 0o640


def test_tensors_that_share_memory_are_written_apart(tmp_path):
    whole = torch.arange(1_000_000.0)
    state = {'a': whole[:2], 'b': whole[1:3], 'c': whole[2:4]}
    path = tmp_path / 'x.pth'

    write_checkpoint(path, state, {}, force=False)

    assert path.stat().st_size < 10_000
    assert all(torch.equal(load(path)[name], state[name]) for name in state)


def test_a_link_stays_a_link(store, tmp_path):
    real = tmp_path / 'elsewhere.pth'
    real.write_text('old')
    store.symlink_to(real)

    write_checkpoint(store, {'a': torch.zeros(1)}, {}, force=True)

    assert store.is_symlink()
    assert load(real)['a'] == 0


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_full_disk_leaves_the_old_store_and_no_debris(store, suffix):
    store = store.with_suffix(suffix)
    store.write_text('precious')
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A limit on the size of files ends a write half-way, as a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match=r'could not be written \(.*File too large'):
            write_checkpoint(store, {'a': torch.rand(1_000_000)}, {}, force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert store.read_text() == 'precious'
    assert os.listdir(store.parent) == [store.name]
