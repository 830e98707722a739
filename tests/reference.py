"""Deterministic weights and images, and what the official code makes of them.

``tests/data/features`` holds, for six variants and several image sizes, what the
official segmentation backbone (Meituan-AutoML/Twins, ``segmentation/gvt.py``)
returns in float64 with padding never attended to: per stage the shape, mean,
standard deviation and 64 values at evenly spaced places. The weights are a pure
function of each parameter's official name and its shape, so that both sides have
the same without a checkpoint.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

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
