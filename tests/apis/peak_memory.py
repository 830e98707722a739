"""The memory that the prediction of a TIFF takes.

    PYTHONPATH=tests python -m apis.peak_memory 20000 20000 --confidence

makes a TIFF of that height and width and a narrow model of 19 classes with random
weights, predicts it with ``mmseg-twins predict`` in windows of 1024x1024 px, which lie
side by side, and prints the largest resident memory of that process. Other options are
the command's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS

import mmseg_twins  # noqa: F401, activates compat
from builders import PREDICTION_CONFIG

CLASSES = 19
CHANGES = {
    'num_classes=3': f'num_classes={CLASSES}',
    'embed_dims=[8, 16, 24, 32]': 'embed_dims=[4, 8, 12, 16]',
    'in_channels=32': 'in_channels=16',
    'depths=[2, 1, 1, 1]': 'depths=[1, 1, 1, 1], mlp_ratios=[1, 1, 1, 1]',
}
TILE = 256


def write_model(folder: Path) -> None:
    """Writes ``config.py`` and ``weights.pth``."""
    text = PREDICTION_CONFIG
    for there, instead in CHANGES.items():
        assert there in text
        text = text.replace(there, instead)
    (folder / 'config.py').write_text(text)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(Config.fromfile(folder / 'config.py').model)
    names = [f'class {number}' for number in range(CLASSES)]
    palette = [[13 * number, 255 - 13 * number, 0] for number in range(CLASSES)]
    torch.save(
        {
            'meta': {'dataset_meta': dict(classes=names, palette=palette)},
            'state_dict': model.state_dict(),
        },
        folder / 'weights.pth',
    )


def write_image(path: Path, height: int, width: int) -> None:
    """Writes a TIFF of moving stripes, a row of tiles at a time."""
    import rasterio
    from rasterio.windows import Window

    rng = np.random.default_rng(0)
    stripes = rng.integers(256, size=(3, TILE, -(-width // 64))).astype(np.uint8)
    stripes = stripes.repeat(64, axis=2)[..., :width]
    with rasterio.open(
        path,
        'w',
        driver='GTiff',
        height=height,
        width=width,
        count=3,
        dtype='uint8',
        tiled=True,
        blockxsize=TILE,
        blockysize=TILE,
        compress='deflate',
        interleave='pixel',
        crs='EPSG:32633',
        transform=rasterio.Affine(0.5, 0, 500000, 0, -0.5, 5000000),
    ) as file:
        for row in range(0, height, TILE):
            rows = min(TILE, height - row)
            moved = np.roll(stripes, row, axis=2)[:, :rows]
            file.write(moved, window=Window(0, row, width, rows))


def predict(folder: Path, image: str, *options: str) -> tuple[float, float]:
    """Predicts an image in a process; returns its peak in MB, and seconds."""
    command = [sys.executable, '-m', 'mmseg_twins', 'predict', 'config.py']
    command += ['weights.pth', image, '--out-dir', f'out-{image}', '--device', 'cpu']
    start = time.perf_counter()
    process = subprocess.Popen([*command, *options], cwd=folder)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    unit = 1 if sys.platform == 'darwin' else 1024
    return used.ru_maxrss * unit / 1e6, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('height', type=int)
    parser.add_argument('width', type=int)
    args, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder)
        write_image(folder / 'image.tif', args.height, args.width)
        windows = ('--window', '1024', '--stride', '1024')
        peak, seconds = predict(folder, 'image.tif', *windows, *options)
    print('| height x width | peak memory | time |')
    print('| --- | --- | --- |')
    print(f'| {args.height} x {args.width} | {peak:.0f} MB | {seconds:.0f} s |')


if __name__ == '__main__':
    main()
