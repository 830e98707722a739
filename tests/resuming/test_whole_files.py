"""Files that are there completely or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmseg_twins.engine.whole_files import WholeFiles


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch):
    path = tmp_path / 'iter_2.pth'
    path.write_bytes(b'old')

    def write_a_part(self: Path, content: bytes) -> None:
        with self.open('wb') as file:
            file.write(content[:2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, 'write_bytes', write_a_part)
    with pytest.raises(KeyboardInterrupt):
        WholeFiles().put(b'new content', path)

    assert path.read_bytes() == b'old'
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_made_and_text_is_written(tmp_path: Path):
    WholeFiles().put_text('grün', tmp_path / 'new/text')

    assert (tmp_path / 'new/text').read_text(encoding='utf-8') == 'grün'


def test_removal_waits(tmp_path: Path):
    file, folder = tmp_path / 'iter_2.pth', tmp_path / 'iter_4.pth'
    file.touch()
    folder.mkdir()
    backend = WholeFiles()
    backend.remove(file)
    backend.rmtree(folder)
    backend.remove(tmp_path / 'not there')
    assert file.exists()
    assert folder.exists()

    backend.remove_outdated()
    assert list(tmp_path.iterdir()) == []
    assert backend.outdated == []
