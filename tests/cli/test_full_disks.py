"""Disks that are full: a sentence with the file's name, and whole files remain.

The disk is a small file system in memory; where none can be mounted, a limit to the
size of files stands for it.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import pytest
import torch
from mmengine.config import Config

from builders import small_demo
from mmseg_twins.apis.export import DEPLOY_PACKAGES
from mmseg_twins.apis.loading import build_segmentor
from mmseg_twins.cli import check_dataset, convert, export, predict, test, weights

SIZE = 64 << 10
NO_ROOM = r'could not be written \([^()]*(No space left on device|File too large).*\)'


class Disk:
    """A folder with room for 64 kB; with ``is_small`` only files are limited so."""

    def __init__(self, folder: Path, *, is_small: bool) -> None:
        self.folder, self.is_small = folder, is_small

    def fill(self, *, but: int = 0) -> None:
        """Leave room for so many bytes."""
        if not self.is_small:
            pytest.skip('no small file system can be mounted here')
        filler = self.folder / 'filler'
        with contextlib.suppress(OSError), filler.open('wb', buffering=0) as file:
            while True:
                file.write(bytes(4096))
        os.truncate(filler, filler.stat().st_size - but)

    @property
    def names(self) -> list[str]:
        """The names of the files."""
        files = [path.name for path in self.folder.rglob('*') if path.is_file()]
        return sorted(set(files) - {'filler'})


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / 'disk'
    folder.mkdir()
    tmpfs = ['-t', 'tmpfs', '-o', f'size={SIZE}', 'none', folder]
    try:
        done = subprocess.run(['mount', *tmpfs], capture_output=True, check=False)
        is_mounted = done.returncode == 0
    except FileNotFoundError:
        is_mounted = False
    if is_mounted:
        yield Disk(folder, is_small=True)
        subprocess.run(['umount', '--lazy', folder], check=True)
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, before[1]))
    try:
        yield Disk(folder, is_small=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def sentence(main: Callable, *arguments: object, capsys) -> str:
    """Runs a command on the full disk; returns the sentence that it ends with."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    said = capsys.readouterr().err
    assert status == 1, said
    assert 'Traceback' not in said
    return said.splitlines()[-1]


@pytest.mark.parametrize('name', ['out.onnx', 'out.pt2'])
def test_an_export_keeps_the_file_before(
    name: str, disk: Disk, tmp_path: Path, monkeypatch, config_text, capsys
):
    if name == 'out.onnx':
        for package in DEPLOY_PACKAGES:
            pytest.importorskip(package, reason='comes with the extra `deploy`')
    (tmp_path / 'small.py').write_text(config_text())
    monkeypatch.chdir(tmp_path)
    (disk.folder / name).write_text('precious')
    arguments = ('small.py', 'none', f'disk/{name}', '--size', 64, 64, '--force')
    said = sentence(export.main, *arguments, capsys=capsys)
    expected = f'export_onnx.py: error: disk/{name} {NO_ROOM}; nothing was changed'
    assert re.fullmatch(expected, said), said
    assert disk.names == [name]
    assert (disk.folder / name).read_text() == 'precious'


@pytest.mark.parametrize('name', ['store.pth', 'store.safetensors'])
def test_a_conversion_keeps_the_file_before(
    name: str, disk: Disk, classifier: Path, capsys
):
    store = disk.folder / name
    store.write_text('precious')
    said = sentence(convert.main, classifier, store, '--force', capsys=capsys)
    expected = f'twins2mmseg: error: {store} {NO_ROOM}; nothing was changed'
    assert re.fullmatch(expected, said), said
    assert disk.names == [name]
    assert store.read_text() == 'precious'


def test_fetched_weights_are_copied_whole_or_not(
    disk: Disk, tmp_path: Path, monkeypatch, capsys
):
    fetched = tmp_path / 'fetched'
    with contextlib.suppress(OSError):
        fetched.write_bytes(bytes(2 * SIZE))
    if fetched.stat().st_size != 2 * SIZE:
        pytest.skip('no small file system can be mounted here')
    monkeypatch.setattr(weights, 'obtain', lambda _: fetched)
    said = sentence(weights.main, 'svt-s', '--to', disk.folder, capsys=capsys)
    path = disk.folder / 'svt-s.safetensors'
    expected = f'mmseg-twins weights: error: {path} {NO_ROOM}; nothing was changed'
    assert re.fullmatch(expected, said), said
    assert disk.names == []


def test_predictions_before_the_full_disk_are_whole(disk: Disk, pictures: Path, capsys):
    (disk.folder / 'out').mkdir()
    for kind in ('labels', 'overlays'):
        (disk.folder / 'out' / kind).mkdir()
    disk.fill(but=5 * 4096)
    images = ('a.png', 'b.png', '--out-dir', 'disk/out')
    said = sentence(predict.main, 'config.py', 'weights.pth', *images, capsys=capsys)
    found = re.match(rf'predict\.py: error: disk/out/(\w+)/b\.png {NO_ROOM}; ', said)
    assert found, said
    assert disk.names[0] == 'a.png'
    assert not (disk.folder / f'out/{found[1]}/b.png').exists()
    for path in (disk.folder / 'out').rglob('*.png'):
        assert cv2.imread(str(path)) is not None


@pytest.fixture
def tested(scenes: Path, tmp_path: Path, monkeypatch) -> list[str]:
    """The arguments of a test, with a checkpoint of random weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    cfg = small_demo(scenes)
    (tmp_path / 'small.py').write_text(cfg.pretty_text)
    state = build_segmentor(Config.fromfile('small.py')).state_dict()
    torch.save({'state_dict': state}, 'weights.pth')
    return ['small.py', 'weights.pth', '--work-dir', 'run']


def test_label_maps_before_the_full_disk_are_whole(disk: Disk, tested, capsys):
    (disk.folder / 'out').mkdir()
    disk.fill(but=4096)
    said = sentence(test.main, *tested, '--out', 'disk/out', capsys=capsys)
    expected = rf'test\.py: error: disk/out/(\S+) {NO_ROOM}; the files before .*'
    found = re.fullmatch(expected, said)
    assert found, said
    assert len(disk.names) == 1
    assert found[1] not in disk.names
    assert cv2.imread(str(disk.folder / 'out' / disk.names[0])) is not None


def test_drawings_before_the_full_disk_are_whole(disk: Disk, tested, capsys):
    disk.fill(but=SIZE // 4)
    said = sentence(test.main, *tested, '--show-dir', 'disk/out', capsys=capsys)
    found = re.match(rf'test\.py: error: (\S+\.png) {NO_ROOM}; the images', said)
    assert found, said
    assert not Path(found[1]).exists()


def test_a_plot_is_whole_or_not_there(disk: Disk, scenes: Path, capsys):
    disk.fill(but=4096)
    parts = (scenes / kind / 'training' for kind in ('images', 'annotations'))
    images, masks = parts
    arguments = ('--images', images, '--masks', masks, '--classes', 8, '--jobs', 1)
    plot = disk.folder / 'plot.png'
    said = sentence(check_dataset.main, *arguments, '--plot', plot, capsys=capsys)
    expected = f'check_dataset.py: error: {plot} {NO_ROOM}; nothing was changed'
    assert re.fullmatch(expected, said), said
    assert disk.names == []
