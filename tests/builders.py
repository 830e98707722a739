"""What tests build: tiny backbones, the demo made small, the reference's weights.

The recorded facts are in ``tests/data``: ``features`` holds what the official
segmentation backbone (Meituan-AutoML/Twins, ``segmentation/gvt.py``) returns in
float64 with padding never attended to, for six variants and several image sizes: per
stage the shape, mean, standard deviation and 64 values at evenly spaced places. The
weights are a pure function of each parameter's official name and shape, so that both
sides have the same without a checkpoint.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import Tensor

from mmseg_twins.models.backbones import PCPVT, SVT
from mmseg_twins.models.backbones.sizes import PCPVT_SIZES, SVT_SIZES

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


RUNS = itertools.count()


def train_demo(
    cfg: Config, folder: Path, work_dir: str = 'run', *, exact: bool = True, **settings
) -> Runner:
    """Trains a copy of a config in this process.

    Args:
        cfg: such as :func:`small_demo` makes.
        folder: where ``work_dir`` is.
        work_dir: of the training.
        exact: whether to keep ExactResume.
        settings: replace those of ``cfg``; `__` stands for a dot.
    """
    cfg = copy.deepcopy(cfg)
    name = f'run_{os.getpid()}_{next(RUNS)}'  # mmengine shares what has one name
    cfg.merge_from_dict(
        {
            'work_dir': str(folder / work_dir),
            'experiment_name': name,
            'visualizer.name': name,
            # Merging takes `_delete_` out.
            **copy.deepcopy({k.replace('__', '.'): v for k, v in settings.items()}),
        }
    )
    if not exact:
        del cfg.default_hooks.resuming
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # mmengine formats the config with every checkpoint, half the time of a run.
        with mock.patch.object(Config, 'pretty_text', 'left out'):
            runner = Runner.from_cfg(cfg)
            runner.train()
    finally:
        torch.set_num_threads(threads)
    return runner


CUT = 8


def narrow_config(name: str) -> Config:
    """A config of ``configs`` at an eighth of its width, without randomness.

    Crops are of 64 px, and no pretrained weights are loaded. Heads, losses, layout of
    the backbone and optimizer are the config's own.
    """
    # What Mask2Former's config imports need not be there.
    cfg = Config.fromfile(ROOT / f'configs/{name}.py', import_custom_modules=False)
    model = cfg.model
    sizes = {'mmseg_twins.PCPVT': PCPVT_SIZES, 'mmseg_twins.SVT': SVT_SIZES}
    widths = sizes[model.backbone.type][model.backbone.arch].embed_dims
    model.backbone.update(
        embed_dims=[w // CUT for w in model.backbone.get('embed_dims', widths)],
        drop_path_rate=0.0,
        init_cfg=None,
    )
    for part in (model.get('neck'), model.decode_head, model.get('auxiliary_head')):
        for key in ('in_channels', 'out_channels', 'channels', 'c1_in_channels'):
            value = (part or {}).get(key)
            if isinstance(value, int):
                part[key] = value // CUT
            elif value is not None:
                part[key] = [channels // CUT for channels in value]
        if 'dropout_ratio' in (part or {}):
            part.dropout_ratio = 0.0
    if model.data_preprocessor.get('size'):
        model.data_preprocessor.size = (64, 64)
    return cfg


DATA = Path(__file__).parent / 'data'
FEATURES = DATA / 'features'
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
    """Runs a script of ``tools`` in two processes that share its work, on the CPU."""
    run_distributed(tool, *arguments, folder=folder, processes=2)


def run_distributed(
    tool: str, *arguments: str, folder: Path, processes: int, on_gpu: bool = False
) -> None:
    """Runs a script of ``tools`` in processes that share its work.

    Args:
        tool: the script's name, such as ``train.py``.
        arguments: the script's.
        folder: where relative paths begin.
        processes: their number.
        on_gpu: whether they see the GPUs.

    Raises:
        subprocess.CalledProcessError: It failed; what it wrote is shown by pytest.
    """
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    torchrun += ['--nproc-per-node', str(processes)]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    if not on_gpu:
        environment['CUDA_VISIBLE_DEVICES'] = ''
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


def layer(name: str, *shape: int, bias: bool = True) -> Shapes:
    shapes = {f'{name}.weight': shape}
    return shapes | ({f'{name}.bias': shape[:1]} if bias else {})


def batch_norm(name: str, width: int) -> Shapes:
    buffers = {f'{name}.{part}': (width,) for part in ('running_mean', 'running_var')}
    return layer(name, width) | buffers | {f'{name}.num_batches_tracked': ()}


def official(
    size: Size,
    *,
    is_svt: bool,
    stage_norms: bool,
    classifier: bool,
    sr_ratios: Sequence[int] = SR_RATIOS,
    qkv_bias: bool = True,
) -> Shapes:
    """The official classes; stage norms are those of its segmentation code."""
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
            if is_svt and j % 2 == 0:
                shapes |= layer(f'{block}.attn.qkv', 3 * dim, dim, bias=qkv_bias)
            else:
                shapes |= layer(f'{block}.attn.q', dim, dim, bias=qkv_bias)
                shapes |= layer(f'{block}.attn.kv', 2 * dim, dim, bias=qkv_bias)
                if sr_ratios[i] > 1:
                    kernel = sr_ratios[i]
                    shapes |= layer(f'{block}.attn.sr', dim, dim, kernel, kernel)
                    shapes |= layer(f'{block}.attn.norm', dim)
            shapes |= layer(f'{block}.mlp.fc1', hidden, dim)
            shapes |= layer(f'{block}.mlp.fc2', dim, hidden)
        if stage_norms:
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
            if variant.startswith('svt') and j % 2 == 0:
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
    is_svt = variant.startswith('svt')
    backbone = (
        mmseg(variant)
        if project == 'mmseg'
        else official(
            SIZES[variant],
            is_svt=is_svt,
            stage_norms=is_svt and part != 'cls',
            classifier=True,
        )
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


DIMS = [8, 16, 24, 32]


def tiny_config(
    family: str = 'SVT',
    head: str = 'mmseg_twins.UPerHead',
    *,
    stages: int = 4,
    align_corners: bool = False,
    depths: Sequence[int] = (2, 1, 1, 1),
    pool_scales: Sequence[int] = (1, 2, 3, 6),
) -> dict:
    """A segmentor's config of narrow layers; Semantic FPN has its neck."""
    dims = DIMS[:stages]
    windows = dict(window_sizes=[7] * stages) if family == 'SVT' else {}
    shared = dict(
        type=head,
        in_index=list(range(stages)),
        channels=8,
        num_classes=5,
        norm_cfg=dict(type='BN'),
        align_corners=align_corners,
    )
    if 'FPN' in head:
        neck = dict(type='FPN', in_channels=dims, out_channels=8, num_outs=stages)
        shared |= dict(
            in_channels=[8] * stages, feature_strides=[4, 8, 16, 32][:stages]
        )
    else:
        neck = None
        shared |= dict(in_channels=dims, pool_scales=pool_scales)
    return dict(
        type='EncoderDecoder',
        data_preprocessor=dict(
            type='SegDataPreProcessor',
            mean=[123.675, 116.28, 103.53],
            std=[58.395, 57.12, 57.375],
            bgr_to_rgb=True,
        ),
        backbone=dict(
            type=f'mmseg_twins.{family}',
            embed_dims=dims,
            num_heads=[1, 2, 3, 4][:stages],
            mlp_ratios=[2] * stages,
            depths=list(depths[:stages]),
            sr_ratios=[8, 4, 2, 1][:stages],
            qkv_bias=True,
            **windows,
        ),
        neck=neck,
        decode_head=shared,
        test_cfg=dict(mode='whole'),
    )


CLASSES_OF_THREE = ('sky', 'a$b$', 'road')
PALETTE_OF_THREE = ((10, 20, 200), (250, 0, 120), (90, 160, 30))
# A tiny segmentor of three classes, for predictions.
PREDICTION_CONFIG = """
custom_imports = dict(imports=['mmseg_twins'], allow_failed_imports=False)
default_scope = 'mmseg'
norm_cfg = dict(type='SyncBN', requires_grad=True)
head = dict(
    type='FCNHead',
    in_channels=32,
    in_index=3,
    channels=8,
    num_convs=1,
    norm_cfg=norm_cfg,
    num_classes=3,
)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[120.0, 120.0, 120.0],
        std=[60.0, 60.0, 60.0],
        bgr_to_rgb=True,
        test_cfg=dict(size_divisor=32),
    ),
    backbone=dict(
        type='mmseg_twins.SVT',
        arch='small',
        embed_dims=[8, 16, 24, 32],
        num_heads=[1, 2, 3, 4],
        depths=[2, 1, 1, 1],
    ),
    decode_head=head,
    auxiliary_head=dict(head, num_convs=2),
    test_cfg=dict(mode='whole'),
)
image = dict(type='LoadImageFromFile')
resize = dict(type='Resize', scale=(128, 64), keep_ratio=True)
labels = dict(type='LoadAnnotations')
pack = dict(type='PackSegInputs')
test_pipeline = [image, resize, labels, pack]
test_dataloader = dict(dataset=dict(type='BaseSegDataset', pipeline=test_pipeline))
visualizer = dict(type='SegLocalVisualizer', name='visualizer')
tta_model = dict(type='SegTTAModel')
tta_pipeline = [
    image,
    dict(
        type='TestTimeAug',
        transforms=[
            [resize, dict(type='Resize', scale=(192, 96), keep_ratio=True)],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [labels],
            [pack],
        ],
    ),
]
"""
