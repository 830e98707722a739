"""Which images ``tools/predict.py`` reads, and where it writes the results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmseg_twins.apis.rows import write_png
from mmseg_twins.cli.image_files import find_images, plan_jobs


def test_images_of_the_same_name_stay_apart(tmp_path):
    names = ('day/a.jpg', 'night/a.jpg', 'night/A.png', 'night/b.jpg')
    jobs = plan_jobs([tmp_path / name for name in names], Path('out'), force=False)
    assert [job.labels.as_posix() for job in jobs] == [
        'out/labels/day/a.png',
        'out/labels/night/a.jpg.png',
        'out/labels/night/A.png.png',
        'out/labels/night/b.png',
    ]
    assert [job.overlay.parts[2:] for job in jobs] == [
        job.labels.parts[2:] for job in jobs
    ]


def test_an_image_is_never_overwritten_by_its_result(tmp_path):
    image = tmp_path / 'labels/a.png'
    image.parent.mkdir()
    image.touch()
    with pytest.raises(ValueError, match='would overwrite the image'):
        plan_jobs([image], tmp_path, force=True)


def test_folders_are_searched_for_images_and_results_left_out(tmp_path):
    for name in ('b.JPG', 'a.png', 'notes.txt', 'more/c.webp', 'out/labels/a.png'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    given = [str(tmp_path), str(tmp_path / 'a.png')]
    names = [path.name for path in find_images(given)]
    assert names == ['a.png', 'b.JPG']
    found = find_images(given, recursive=True, skip=tmp_path / 'out')
    assert [path.name for path in found] == ['a.png', 'b.JPG', 'c.webp']


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(path, content):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, 'write_bytes', interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_png(tmp_path / 'a.png', np.zeros((2, 2), np.uint8), force=True)
    assert list(tmp_path.iterdir()) == []
