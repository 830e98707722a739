"""Names and shapes of Twins checkpoints, written down without the package's rules.

``tests/data/layouts.json`` has, for 36 recorded layouts, the number of tensors and the
SHA-256 of their sorted lines ``name AxBxC``. :func:`shapes_of` writes the layouts out;
that it gives the recorded ones is a test of its own (:func:`digest`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from builders import deterministic_tensor, generator

DATA = Path(__file__).parents[1] / 'data'
RECORDED = json.loads((DATA / 'layouts.json').read_text())
CLASSES = 150

Shapes = dict[str, tuple[int, ...]]


class Size(NamedTuple):
    """A row of the paper's tables 7 and 8."""

    dims: tuple[int, ...]
    mlp_ratios: tuple[int, ...]
    depths: tuple[int, ...]


SIZES = {
    'pcpvt-s': Size((64, 128, 320, 512), (8, 8, 4, 4), (3, 4, 6, 3)),
    'pcpvt-b': Size((64, 128, 320, 512), (8, 8, 4, 4), (3, 4, 18, 3)),
    'pcpvt-l': Size((64, 128, 320, 512), (8, 8, 4, 4), (3, 8, 27, 3)),
    'svt-s': Size((64, 128, 256, 512), (4, 4, 4, 4), (2, 2, 10, 4)),
    'svt-b': Size((96, 192, 384, 768), (4, 4, 4, 4), (2, 2, 18, 2)),
    'svt-l': Size((128, 256, 512, 1024), (4, 4, 4, 4), (2, 2, 18, 2)),
}
VARIANTS = list(SIZES)
SR_RATIOS = (8, 4, 2, 1)


def layer(name: str, *shape: int) -> Shapes:
    """Weight and bias."""
    return {f'{name}.weight': shape, f'{name}.bias': shape[:1]}


def batch_norm(name: str, width: int) -> Shapes:
    buffers = {f'{name}.{part}': (width,) for part in ('running_mean', 'running_var')}
    return layer(name, width) | buffers | {f'{name}.num_batches_tracked': ()}


def attends_locally(variant: str, block: int) -> bool:
    return variant.startswith('svt') and block % 2 == 0


def official(variant: str, *, stage_norms: bool, classifier: bool) -> Shapes:
    """The official classes; stage norms are those of its segmentation code."""
    size = SIZES[variant]
    shapes = {}
    for i, dim in enumerate(size.dims):
        before = size.dims[i - 1] if i else 3
        kernel = 2 if i else 4
        shapes |= layer(f'patch_embeds.{i}.proj', dim, before, kernel, kernel)
        shapes |= layer(f'patch_embeds.{i}.norm', dim)
        shapes |= layer(f'pos_block.{i}.proj.0', dim, 1, 3, 3)
        for j in range(size.depths[i]):
            block, hidden = f'blocks.{i}.{j}', size.mlp_ratios[i] * dim
            shapes |= layer(f'{block}.norm1', dim) | layer(f'{block}.norm2', dim)
            shapes |= layer(f'{block}.attn.proj', dim, dim)
            if attends_locally(variant, j):
                shapes |= layer(f'{block}.attn.qkv', 3 * dim, dim)
            else:
                shapes |= layer(f'{block}.attn.q', dim, dim)
                shapes |= layer(f'{block}.attn.kv', 2 * dim, dim)
                if SR_RATIOS[i] > 1:
                    kernel = SR_RATIOS[i]
                    shapes |= layer(f'{block}.attn.sr', dim, dim, kernel, kernel)
                    shapes |= layer(f'{block}.attn.norm', dim)
            shapes |= layer(f'{block}.mlp.fc1', hidden, dim)
            shapes |= layer(f'{block}.mlp.fc2', dim, hidden)
        if stage_norms and variant.startswith('svt'):
            shapes |= layer(f'norm_list.{i}', dim)
    if classifier:
        shapes |= layer('norm', size.dims[-1]) | layer('head', 1000, size.dims[-1])
    return shapes


def mmseg(variant: str) -> Shapes:
    """mmsegmentation's backbone."""
    size = SIZES[variant]
    shapes = {}
    for i, dim in enumerate(size.dims):
        before = size.dims[i - 1] if i else 3
        kernel = 2 if i else 4
        shapes |= layer(f'patch_embeds.{i}.projection', dim, before, kernel, kernel)
        shapes |= layer(f'patch_embeds.{i}.norm', dim)
        shapes |= layer(f'position_encodings.{i}.proj', dim, 1, 3, 3)
        for j in range(size.depths[i]):
            block, hidden = f'layers.{i}.{j}', size.mlp_ratios[i] * dim
            shapes |= layer(f'{block}.norm1', dim) | layer(f'{block}.norm2', dim)
            if attends_locally(variant, j):
                shapes |= layer(f'{block}.attn.qkv', 3 * dim, dim)
                shapes |= layer(f'{block}.attn.proj', dim, dim)
            else:
                shapes[f'{block}.attn.attn.in_proj_weight'] = (3 * dim, dim)
                shapes[f'{block}.attn.attn.in_proj_bias'] = (3 * dim,)
                shapes |= layer(f'{block}.attn.attn.out_proj', dim, dim)
                if SR_RATIOS[i] > 1:
                    kernel = SR_RATIOS[i]
                    shapes |= layer(f'{block}.attn.sr', dim, dim, kernel, kernel)
                    shapes |= layer(f'{block}.attn.norm', dim)
            shapes |= layer(f'{block}.ffn.layers.0.0', hidden, dim)
            shapes |= layer(f'{block}.ffn.layers.1', dim, hidden)
        if variant.startswith('svt'):
            shapes |= layer(f'norm_list.{i}', dim)
    return shapes


def mmseg_conv(name: str, rows: int, columns: int, kernel: int) -> Shapes:
    """mmcv's ConvModule with a batch norm."""
    weight = {f'{name}.conv.weight': (rows, columns, kernel, kernel)}
    return weight | batch_norm(f'{name}.bn', rows)


def mmseg_upernet_heads(variant: str, auxiliary: int = 256) -> Shapes:
    dims, head = SIZES[variant].dims, 'decode_head'
    shapes = layer(f'{head}.conv_seg', CLASSES, 512, 1, 1)
    for i in range(4):
        shapes |= mmseg_conv(f'{head}.psp_modules.{i}.1', 512, dims[3], 1)
    shapes |= mmseg_conv(f'{head}.bottleneck', 512, dims[3] + 4 * 512, 3)
    for i in range(3):
        shapes |= mmseg_conv(f'{head}.lateral_convs.{i}', 512, dims[i], 1)
        shapes |= mmseg_conv(f'{head}.fpn_convs.{i}', 512, 512, 3)
    shapes |= mmseg_conv(f'{head}.fpn_bottleneck', 512, 4 * 512, 3)
    shapes |= mmseg_conv('auxiliary_head.convs.0', auxiliary, dims[2], 3)
    return shapes | layer('auxiliary_head.conv_seg', CLASSES, auxiliary, 1, 1)


def mmseg_fpn_heads(variant: str) -> Shapes:
    shapes = layer('decode_head.conv_seg', CLASSES, 128, 1, 1)
    for i, dim in enumerate(SIZES[variant].dims):
        shapes |= layer(f'neck.lateral_convs.{i}.conv', 256, dim, 1, 1)
        shapes |= layer(f'neck.fpn_convs.{i}.conv', 256, 256, 3, 3)
        for step in range(max(i, 1)):  # a convolution for each doubling of the map
            name = f'decode_head.scale_heads.{i}.{2 * step}'
            shapes |= mmseg_conv(name, 128, 128 if step else 256, 3)
    return shapes


def ssseg_conv(name: str, first: int, rows: int, columns: int, kernel: int) -> Shapes:
    """A convolution and a batch norm, numbered in a sequence from ``first`` on."""
    weight = {f'{name}.{first}.weight': (rows, columns, kernel, kernel)}
    return weight | batch_norm(f'{name}.{first + 1}', rows)


def ssseg_heads(variant: str) -> Shapes:
    dims = SIZES[variant].dims
    width = 1024 if variant == 'pcpvt-s' else 512
    shapes = {}
    for i in range(4):
        shapes |= ssseg_conv(f'ppm_net.branches.{i}', 1, width, dims[3], 1)
    shapes |= ssseg_conv('ppm_net.bottleneck', 0, width, dims[3] + 4 * width, 3)
    for i in range(3):
        shapes |= ssseg_conv(f'lateral_convs.{i}', 0, width, dims[i], 1)
        shapes |= ssseg_conv(f'fpn_convs.{i}', 0, width, width, 3)
    shapes |= ssseg_conv('decoder', 0, width, 4 * width, 3)
    shapes |= layer('decoder.4', CLASSES, width, 1, 1)
    shapes |= ssseg_conv('auxiliary_decoder', 0, 512, dims[2], 3)
    return shapes | layer('auxiliary_decoder.4', CLASSES, 512, 1, 1)


def under(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


def shapes_of(layout: str, variant: str) -> Shapes:
    """The names and shapes of a layout.

    Args:
        layout: a recorded one (``official-cls``, ``official-seg``, ``mmseg``,
            ``mmseg-upernet``, ``mmseg-fpn``, ``ssseg-upernet``), or the official
            code's whole segmentors, ``official-upernet`` and ``official-fpn``.
        variant: such as ``'svt-s'``.
    """
    project, _, part = layout.partition('-')
    if project == 'ssseg':
        return under('backbone_net.', mmseg(variant)) | ssseg_heads(variant)
    segmentor = part in ('upernet', 'fpn')
    backbone = (
        mmseg(variant)
        if project == 'mmseg'
        else official(variant, stage_norms=part != 'cls', classifier=True)
    )
    if not segmentor:
        return backbone
    heads = mmseg_upernet_heads if part == 'upernet' else mmseg_fpn_heads
    return under('backbone.', backbone) | heads(variant)


def digest(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The SHA-256 of the sorted lines ``name AxBxC``."""
    lines = sorted(
        f'{name} {"x".join(map(str, shape))}' for name, shape in shapes.items()
    )
    return hashlib.sha256('\n'.join(lines).encode()).hexdigest()


def is_counter(name: str) -> bool:
    return name.endswith('num_batches_tracked')


def meta_state(shapes: Shapes) -> dict[str, Tensor]:
    """Tensors without values."""
    return {
        name: torch.empty(
            shape, device='meta', dtype=torch.int64 if is_counter(name) else None
        )
        for name, shape in shapes.items()
    }


def random_state(shapes: Shapes, dtype: torch.dtype = torch.float32) -> dict:
    """Tensors that a forward pass survives, quickly made; no two are equal."""
    state = {}
    for name, shape in shapes.items():
        if is_counter(name):
            state[name] = torch.tensor(len(state))
        elif len(shape) > 1:
            scale = np.prod(shape[1:]) ** -0.5
            state[name] = (torch.randn(shape) * scale).to(dtype)
        else:
            positive = name.endswith(('norm.weight', 'running_var'))
            state[name] = (torch.rand(shape) + positive).to(dtype)
    return state


def recorded_state(shapes: Shapes) -> dict[str, Tensor]:
    """The float64 weights with which outputs of segmentors were recorded."""
    state = {}
    for name, shape in shapes.items():
        if is_counter(name):
            state[name] = torch.zeros((), dtype=torch.int64)
        elif name.endswith('running_var'):
            noise = generator(name).standard_normal(shape)
            state[name] = torch.from_numpy(np.abs(0.05 * noise) * 5 + 0.5)
        else:
            state[name] = torch.from_numpy(deterministic_tensor(name, shape))
    return state


def cheap_state(shapes: Shapes) -> dict[str, Tensor]:
    """Tensors of zeros that take no room in a file; for what fails early."""
    return {
        name: torch.zeros(1, dtype=torch.int64 if is_counter(name) else None)
        .squeeze()
        .expand(shape)
        for name, shape in shapes.items()
    }
