"""What tests build: tiny backbones, the demo made small, the reference's weights.

The recorded facts are in ``tests/data``: ``features`` holds what the official
segmentation backbone (Meituan-AutoML/Twins, ``segmentation/gvt.py``) returns in
float64 with padding never attended to, for six variants and several image sizes: per
stage the shape, mean, standard deviation and 64 values at evenly spaced places. The
weights are a pure function of each parameter's official name and shape, so that both
sides have the same without a checkpoint.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor

from mmseg_twins.models.backbones import PCPVT, SVT

FAMILIES = {'PCPVT': PCPVT, 'SVT': SVT}
TINY = dict(
    embed_dims=(8, 16, 24, 32),
    num_heads=(1, 2, 3, 4),
    mlp_ratios=(4, 4, 2, 2),
    depths=(2, 2, 3, 2),
    sr_ratios=(8, 4, 2, 1),
    qkv_bias=True,
)


def tiny(family: str, **kwargs) -> PCPVT | SVT:
    """A float64 backbone of a few thousand parameters, none of them at a special value.

    Normalizations start at 1 and biases at 0, which would hide mistakes.
    """
    if family == 'SVT':
        kwargs = {'window_sizes': (7, 7, 7, 7), **kwargs}
    backbone = FAMILIES[family](**{**TINY, **kwargs}).double()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return backbone


WIDTHS = [8, 16, 24, 32]


def small_demo(scenes: Path) -> Config:
    """The demo's config, narrow, on the scenes of a folder, loaded in this process.

    Args:
        scenes: what :func:`scene_folder.write_scenes` wrote.
    """
    cfg = Config.fromfile(ROOT / 'configs/demo/twins_svt_fpn_streets.py')
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False, batch_size=2)
        loader.dataset.data_root = str(scenes.absolute())
    cfg.merge_from_dict(
        {
            'model.backbone.embed_dims': WIDTHS,
            'model.neck': dict(in_channels=WIDTHS, out_channels=8),
            'model.decode_head': dict(in_channels=[8] * 4, channels=8),
            'default_hooks.logger.interval': 1,
            'log_level': 'ERROR',
        }
    )
    return cfg


FEATURES = Path(__file__).parent / 'data' / 'features'
SAMPLES = 64

# This package's names, and the official ones that a tensor is made of, in order.
OFFICIAL_NAMES = [
    (r'(patch_embeds\.\d+\.)projection\.(\w+)', (r'\1proj.\2',)),
    (r'layers\.(\d+\.\d+)\.attn\.attn\.in_proj_(\w+)',
     (r'blocks.\1.attn.q.\2', r'blocks.\1.attn.kv.\2')),
    (r'layers\.(\d+\.\d+)\.attn\.attn\.out_proj\.(\w+)', (r'blocks.\1.attn.proj.\2',)),
    (r'layers\.(\d+\.\d+)\.ffn\.layers\.0\.0\.(\w+)', (r'blocks.\1.mlp.fc1.\2',)),
    (r'layers\.(\d+\.\d+)\.ffn\.layers\.1\.(\w+)', (r'blocks.\1.mlp.fc2.\2',)),
    (r'layers\.(.+)', (r'blocks.\1',)),
    (r'position_encodings\.(\d+)\.proj\.(\w+)', (r'pos_block.\1.proj.0.\2',)),
    (r'((?:patch_embeds|norm_list)\.\d+\..+)', (r'\1',)),
]  # fmt: skip


def generator(key: str) -> np.random.Generator:
    """Random numbers that depend on ``key`` alone."""
    return np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))


def deterministic_tensor(name: str, shape: Sequence[int]) -> np.ndarray:
    """The float64 weights of the parameter ``name`` of the official layout."""
    noise = generator(name).standard_normal(tuple(shape))
    if len(shape) > 1:
        return noise / math.sqrt(math.prod(shape[1:]))
    if not name.endswith('weight'):
        return 0.05 * noise
    return 1 + (0.1 if 'norm' in name else 0.05) * noise


def deterministic_image(height: int, width: int) -> Tensor:
    """A float64 image (1, 3, height, width) of waves and noise."""
    noise = generator(f'image1x{height}x{width}').standard_normal((1, 3, height, width))
    y, x = np.arange(height)[:, None], np.arange(width)[None, :]
    waves = [
        np.sin(x / (9.0 + 5 * c) + c) + np.cos(y / (7.0 + 3 * c)) for c in range(3)
    ]
    return torch.from_numpy(np.stack(waves)[None] * 0.7 + 0.5 * noise)


def official_names(name: str) -> list[str]:
    """The official names of the tensors that this package's ``name`` consists of."""
    for pattern, targets in OFFICIAL_NAMES:
        match = re.fullmatch(pattern, name)
        if match:
            return [match.expand(target) for target in targets]
    raise KeyError(name)


def deterministic_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The deterministic weights for a backbone's state dict, in float64."""
    result = {}
    for name, value in state.items():
        sources = official_names(name)
        if len(sources) == 1:
            parts = [deterministic_tensor(sources[0], value.shape)]
        else:  # queries are a third of the packed projection, keys and values the rest
            third = value.shape[0] // 3
            parts = [
                deterministic_tensor(source, (rows, *value.shape[1:]))
                for source, rows in zip(sources, (third, 2 * third), strict=True)
            ]
        result[name] = torch.from_numpy(np.concatenate(parts))
    return result


def recorded_features(variant: str, height: int, width: int) -> list[dict]:
    """What was recorded: per stage ``shape``, ``mean``, ``std`` and ``values``."""
    file = FEATURES / f'{variant}_1x{height}x{width}.json'
    return json.loads(file.read_text())['stages']


def sampled(feature: Tensor) -> Tensor:
    """A map's values at the recorded places."""
    places = np.unique(np.linspace(0, feature.numel() - 1, SAMPLES).astype(np.int64))
    return feature.reshape(-1)[torch.from_numpy(places)]


ROOT = Path(__file__).parents[1]


def run_in_two(tool: str, *arguments: str, folder: Path) -> None:
    """Runs a script of ``tools`` in two processes that share its work.

    Args:
        tool: the script's name, such as ``train.py``.
        arguments: the script's.
        folder: where relative paths begin.

    Raises:
        subprocess.CalledProcessError: It failed; what it wrote is shown by pytest.
    """
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    torchrun += ['--nproc-per-node', '2']
    environment = {**os.environ, 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1'}
    earlier = os.environ.get('PYTHONPATH')
    environment['PYTHONPATH'] = os.pathsep.join(filter(None, (str(ROOT), earlier)))
    environment.pop('LOCAL_RANK', None)
    subprocess.run(
        [*torchrun, str(ROOT / 'tools' / tool), *arguments],
        cwd=folder,
        env=environment,
        check=True,
        timeout=300,
    )
