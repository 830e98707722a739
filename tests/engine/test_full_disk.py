"""Logs and drawings on a disk that is full; a limit on files' sizes stands for it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import weakref
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.visualization import LocalVisBackend as MMEngineLocalVisBackend

from mmseg_twins.engine import LocalVisBackend
from mmseg_twins.engine.full_disk import raise_if_full
from mmseg_twins.errors import WritingError

NOISE = np.random.default_rng(0).integers(256, size=(64, 64, 3)).astype(np.uint8)


@contextlib.contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """Lets writes fail that make a file larger than a size in bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def fails(path: Path | str) -> contextlib.AbstractContextManager:
    message = rf'{path} could not be written \(File too large\); '
    return pytest.raises(WritingError, match=message)


def test_scalars_are_whole_lines_up_to_the_one_that_fails(tmp_path: Path):
    backend = LocalVisBackend(str(tmp_path))
    path = tmp_path / 'scalars.json'
    with no_file_beyond(10_000), fails(path):
        for step in range(1000):
            backend.add_scalars({'loss': 0.5}, step)

    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line['step'] for line in lines] == list(range(step))
    assert path.stat().st_size < 10_000


def test_a_picture_that_fails_is_named_and_leaves_nothing(tmp_path: Path):
    backend = LocalVisBackend(str(tmp_path))
    path = tmp_path / 'vis_image/val_a_0.png'
    with no_file_beyond(1000), fails(path):
        backend.add_image('val_a', NOISE)

    assert list(path.parent.iterdir()) == []


def test_pictures_are_those_of_mmengine(tmp_path: Path):
    for kind in (LocalVisBackend, MMEngineLocalVisBackend):
        kind(str(tmp_path / kind.__module__)).add_image('a', NOISE, 3)

    ours, other = sorted(tmp_path.glob('*/vis_image/a_3.png'))
    assert (cv2.imread(str(ours)) == cv2.imread(str(other))).all()
    assert (cv2.imread(str(ours))[..., ::-1] == NOISE).all()


def test_the_config_that_fails_is_named(tmp_path: Path):
    backend = LocalVisBackend(str(tmp_path))
    with no_file_beyond(100), fails(tmp_path / 'config.py'):
        backend.add_config(Config({'long': list(range(1000))}))


def test_a_log_that_fails_is_named_once_and_keeps_its_lines(tmp_path: Path, capfd):
    path = tmp_path / 'run.log'
    logger = MMLogger('full_disk', log_file=str(path))
    raise_if_full(logger)
    with no_file_beyond(2000):
        with fails(path):
            for number in range(1000):
                logger.info(f'line {number}')
        logger.info('on the screen')
    logging.shutdown(list(map(weakref.ref, logger.handlers)))

    said = capfd.readouterr()
    assert 'on the screen' in said.out
    assert 'Logging error' not in said.err
    assert 'line 9\n' in path.read_text()


def test_other_errors_of_a_log_are_left_to_it(tmp_path: Path, capfd):
    logger = MMLogger('wrong_line', log_file=str(tmp_path / 'run.log'))
    raise_if_full(logger)
    logger.info('%d', 'no number')

    assert 'Logging error' in capfd.readouterr().err
    assert os.path.exists(tmp_path / 'run.log')
