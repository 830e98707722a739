"""What holds for every size, not only for those of the other tests."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.cnn.bricks.transformer import FFN
from torch import Tensor, nn
from torch.nn import functional as F

from builders import Size, official
from mmseg_twins import ops
from mmseg_twins.checkpoints.layouts import LAYOUTS
from mmseg_twins.checkpoints.patterns import Renaming
from mmseg_twins.models.backbones.attention import LSA
from mmseg_twins.models.backbones.blocks import MLP
from mmseg_twins.models.conv2d import Conv2d
from models.backbones.test_attention import masked_local_attention

winograd, mlp = (sys.modules[f'mmseg_twins.ops.{name}'] for name in ('conv3x3', 'mlp'))
quickly = settings(deadline=None, derandomize=True, max_examples=40)
seeds = st.integers(0, 2**32 - 1)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def assert_same_results_and_gradients(got: Tensor, expected: Tensor, inputs: list):
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)
    gradient = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(got, inputs, gradient),
        torch.autograd.grad(expected, inputs, gradient),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


# --- conversion


@st.composite
def official_states(draw) -> tuple[str, dict[str, Tensor]]:
    """A family, and a backbone of the official code of any size with random values."""
    stages = draw(st.integers(1, 5))

    def of_stages(values: st.SearchStrategy) -> st.SearchStrategy:
        return st.lists(values, min_size=stages, max_size=stages)

    family = draw(st.sampled_from(['pcpvt', 'svt']))
    size = Size(
        dims=draw(of_stages(st.integers(1, 5))),
        mlp_ratios=draw(of_stages(st.integers(1, 3))),
        depths=draw(of_stages(st.integers(0, 12))),
    )
    shapes = official(
        size,
        is_svt=family == 'svt',
        stage_norms=draw(st.booleans()),
        classifier=False,
        sr_ratios=draw(of_stages(st.sampled_from([1, 2, 4]))),
        qkv_bias=draw(st.booleans()),
    )
    torch.manual_seed(draw(seeds))
    return family, {name: torch.randn(shape) for name, shape in shapes.items()}


@quickly
@given(official=official_states(), in_segmentor=st.booleans())
def test_names_and_bits_survive_the_way_to_mmsegmentation_and_back(
    official, in_segmentor
):
    family, state = official
    layout = next(
        layout
        for layout in LAYOUTS
        if (layout.project, layout.is_segmentor) == ('official', in_segmentor)
    )
    state = {layout.prefix + name: tensor for name, tensor in state.items()}
    renaming = Renaming((*layout.backbone, *layout.heads), family)

    there = renaming.forwards(state)
    back = renaming.backwards(there)

    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    # Nothing is lost or doubled on the way.
    assert {renaming.target(name) for name in state} == there.keys()
    assert sum(t.numel() for t in there.values()) == sum(
        t.numel() for t in state.values()
    )


@quickly
@given(official=official_states())
def test_merged_queries_come_before_keys_and_values(official):
    family, state = official
    converted = Renaming(LAYOUTS[0].backbone, family).forwards(state)
    for name, q in state.items():
        block, is_q, part = name.partition('.attn.q.')
        if is_q:
            kv = state[f'{block}.attn.kv.{part}']
            target = block.replace('blocks', 'layers') + f'.attn.attn.in_proj_{part}'
            assert torch.equal(converted[target], torch.cat([q, kv]))


# --- attention


@quickly
@given(
    batch=st.integers(1, 3),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    window=st.integers(1, 14),
    heads=st.integers(1, 4),
    head_dims=st.integers(1, 4),
    qkv_bias=st.booleans(),
    seed=seeds,
)
def test_lsa_is_masked_attention_at_any_size(
    batch, height, width, window, heads, head_dims, qkv_bias, seed
):
    torch.manual_seed(seed)
    dims = heads * head_dims
    lsa = LSA(dims, heads, window, qkv_bias=qkv_bias).double()
    x = random(batch, height, width, dims)
    assert_same_results_and_gradients(
        lsa(x), masked_local_attention(lsa, x), [x, *lsa.parameters()]
    )


# --- convolutions of upsampled maps

sides = st.integers(1, 9)
sizes = st.tuples(sides, sides)


@quickly
@given(
    batch=st.integers(1, 2),
    levels=st.lists(st.tuples(st.integers(1, 3), sizes), min_size=1, max_size=4),
    out_channels=st.integers(1, 4),
    has_bias=st.booleans(),
    align_corners=st.booleans(),
    choice=st.sampled_from(ops.CHOICES),
    seed=seeds,
)
def test_convolving_a_pyramid_is_the_plain_expression_at_any_size(
    batch, levels, out_channels, has_bias, align_corners, choice, seed
):
    torch.manual_seed(seed)
    maps = [random(batch, channels, *size) for channels, size in levels]
    weight = random(out_channels, sum(channels for channels, _ in levels), 3, 3)
    bias = random(out_channels) if has_bias else None
    up = [
        F.interpolate(x, levels[0][1], mode='bilinear', align_corners=align_corners)
        for x in maps
    ]
    with ops.use(choice):
        out = ops.pyramid_conv3x3(maps, weight, bias, align_corners)
    assert_same_results_and_gradients(
        out,
        F.conv2d(torch.cat(up, 1), weight, bias, padding=1),
        [*maps, weight, *([bias] if has_bias else [])],
    )


# --- Winograd's convolution and the MLP in chunks


@quickly
@given(
    batch=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    bias=st.booleans(),
    channels_last=st.booleans(),
    strip=st.sampled_from([1, 4000, winograd.STRIP]),
    seed=seeds,
)
def test_the_winograd_layer_is_pytorchs_at_any_size(
    batch, channels, size, bias, channels_last, strip, seed
):
    torch.manual_seed(seed)
    layer = Conv2d(*channels, 3, padding=1, bias=bias).double()
    x = random(batch, channels[0], *size).detach()
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, 'MIN_CHANNELS', 1)
        patch.setattr(winograd, 'MIN_PIXELS', 1)
        patch.setattr(winograd, 'STRIP', strip)
        assert_same_results_and_gradients(
            layer(x), nn.Conv2d.forward(layer, x), [x, *layer.parameters()]
        )


@quickly
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    dims=st.integers(1, 6),
    hidden=st.integers(1, 12),
    rows=st.integers(1, 50),
    seed=seeds,
)
def test_the_mlp_in_chunks_is_mmcvs_ffn_at_any_size(shape, dims, hidden, rows, seed):
    torch.manual_seed(seed)
    module, x = MLP(dims, hidden).double(), random(*shape, dims)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlp, 'CHUNKED_FROM', 0)
        patch.setattr(mlp, 'rows_of_chunk', lambda w1: rows)
        assert_same_results_and_gradients(
            module(x), FFN.forward(module, x), [x, *module.parameters()]
        )
