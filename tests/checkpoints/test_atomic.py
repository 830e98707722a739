"""Files are written whole or not at all, and never over others unasked."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from mmseg_twins.checkpoints.writing import check_writable, replacing


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A file in a folder of its own, not yet there."""
    folder = tmp_path / 'store'
    folder.mkdir()
    return folder / 'file.pth'


def test_a_file_that_can_be_written_passes(store):
    check_writable(store, force=False, suffixes=['.pth'])

    assert os.listdir(store.parent) == []


@pytest.mark.parametrize(
    ('name', 'suffixes', 'error', 'message'),
    [
        ('.', [], IsADirectoryError, 'is a folder; give the name of a file'),
        ('a.txt', ['.pth'], ValueError, 'a.txt does not end in .pth'),
        ('a.txt', ['.a', '.b'], ValueError, 'a.txt ends in none of .a and .b'),
        ('taken', [], FileExistsError, 'taken exists already; --force replaces it'),
        ('no/a.pth', [], FileNotFoundError, 'there is no folder .*no; make it first'),
    ],
)
def test_what_cannot_be_written_is_one_sentence(store, name, suffixes, error, message):
    (store.parent / 'taken').touch()
    with pytest.raises(error, match=message):
        check_writable(store.parent / name, force=False, suffixes=suffixes)


def test_force_allows_a_file_that_is_there(store):
    store.touch()

    check_writable(store, force=True)


def test_what_fails_leaves_the_file_as_it_was(store):
    store.write_text('precious')
    with pytest.raises(RuntimeError), replacing(store, force=True) as temporary:
        temporary.write_text('half')
        raise RuntimeError

    assert store.read_text() == 'precious'
    assert os.listdir(store.parent) == [store.name]


def test_a_file_that_appears_meanwhile_is_left_alone(store):
    with (
        pytest.raises(FileExistsError, match='appeared meanwhile'),
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
