"""How the backbones behave in training and in other people's hands."""

from __future__ import annotations

import shutil

import pytest
import torch
from packaging.version import Version

from builders import FAMILIES, TINY, tiny
from mmseg_twins import ops
from mmseg_twins.models.backbones import SVT
from mmseg_twins.models.backbones.blocks import Block

both = pytest.mark.parametrize('family', FAMILIES)


def image(height: int, width: int) -> torch.Tensor:
    return torch.randn(2, 3, height, width, dtype=torch.float64)


@both
@pytest.mark.parametrize(('height', 'width'), [(173, 301), (33, 32), (95, 70)])
def test_odd_sizes_lose_no_pixel(family, height, width):
    backbone = tiny(family).eval()
    maps = backbone(image(height, width))
    for stage, feature in enumerate(maps):
        stride = 4 * 2**stage
        assert feature.shape[2:] == (-(-height // stride), -(-width // stride))


@both
def test_the_last_row_and_column_count(family):
    backbone = tiny(family).eval()
    x = image(65, 65).requires_grad_()
    backbone(x)[0].sum().backward()
    assert x.grad[:, :, -1].abs().sum() > 0
    assert x.grad[:, :, :, -1].abs().sum() > 0


@both
def test_gradients_reach_every_parameter(family):
    backbone = tiny(family)
    sum((feature**2).sum() for feature in backbone(image(64, 96))).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad.any(), name


@both
def test_gradients_reach_the_blocks_in_the_tokens_layout(family):
    backbone = tiny(family)
    contiguous = []
    for stage in backbone.layers:
        stage[-1].register_full_backward_hook(
            lambda _, __, gradients: contiguous.append(gradients[0].is_contiguous())
        )
    maps = backbone(image(64, 96))
    torch.autograd.backward(maps, [torch.ones(x.shape) for x in maps])
    assert contiguous == [True] * len(backbone.layers)


@both
def test_drop_path_acts_once_on_each_branch(family, monkeypatch):
    backbone = tiny(family, drop_path_rate=0.3).train()
    rates, kept = [], []

    def add_branch(x, branch, kept_of_branch):
        kept.append(kept_of_branch)
        return add(x, branch, kept_of_branch)

    def draw_kept(x, drop_rate, branches):
        rates.append(drop_rate)
        return draw(x, drop_rate, branches)

    add, draw = ops.add_branch, ops.draw_kept
    monkeypatch.setattr(ops, 'add_branch', add_branch)
    monkeypatch.setattr(ops, 'draw_kept', draw_kept)
    backbone(image(64, 64))
    blocks = sum(TINY['depths'])
    assert rates == pytest.approx([0.3 * i / (blocks - 1) for i in range(blocks)])
    # Two branches a block; block 0 drops nothing.
    assert [one is None for one in kept] == [True] * 2 + [False] * 2 * (blocks - 1)
    assert len({one.mask.data_ptr() for one in kept[2:]}) == 2 * (blocks - 1)


@both
def test_drop_path_keeps_all_branches_in_evaluation(family):
    backbone = tiny(family, drop_path_rate=0.9)
    x = image(64, 64)
    expected = tiny(family, drop_path_rate=0.0)
    expected.load_state_dict(backbone.state_dict())
    for got, want in zip(backbone.eval()(x), expected(x), strict=True):
        assert torch.equal(got, want)


def test_drop_path_rates_grow_linearly():
    backbone = tiny('PCPVT', drop_path_rate=0.4)
    rates = [m.drop_path_rate for m in backbone.modules() if isinstance(m, Block)]
    assert rates == pytest.approx([0.4 * i / 8 for i in range(9)])


@both
def test_activation_checkpointing_gives_equal_gradients(family):
    gradients = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        backbone = tiny(family, with_cp=with_cp, drop_path_rate=0.3, drop_rate=0.1)
        x = image(64, 96)
        torch.manual_seed(1)
        sum((feature**2).sum() for feature in backbone(x)).backward()
        gradients.append([parameter.grad for parameter in backbone.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-12, atol=1e-12)


@both
def test_activation_checkpointing_keeps_fewer_tensors(family):
    kept = []
    for with_cp in (False, True):
        backbone = tiny(family, with_cp=with_cp)
        sizes = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            backbone(image(64, 64))
        kept.append(sum(sizes))
    assert kept[1] < 0.5 * kept[0]


@both
def test_bf16_autocast_stays_near_float64(family):
    # oneDNN 3.12 returns wrong bf16 convolutions of 4x4 and larger below 32 channels.
    backbone = tiny(family, embed_dims=(32, 32, 36, 32)).eval()
    x = image(64, 96)
    with torch.no_grad():
        exact = backbone(x)
        backbone.float()
        with torch.autocast('cpu', torch.bfloat16):
            rounded = backbone(x.float())
    for feature, expected in zip(rounded, exact, strict=True):
        error = (feature.double() - expected).std() / expected.std()
        assert 1e-5 < error < 0.03


@both
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_compiled_output_is_equal(family):
    backbone = tiny(family).eval()
    compiled = torch.compile(backbone, backend='aot_eager', fullgraph=True)
    x = image(64, 96)
    with torch.no_grad():
        for got, expected in zip(compiled(x), backbone(x), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('g++'), reason='inductor needs a C++ compiler')
@pytest.mark.skipif(
    Version(torch.__version__) < Version('2.13'),
    reason="PyTorch 2.7's inductor takes no float64 attention",
)
@both
def test_inductors_output_and_gradients_are_equal(family):
    # Drawn apart: stochastic depth, SVT's default.
    backbone = tiny(family, drop_path_rate=0.0)
    compiled = torch.compile(backbone)
    x = image(64, 96)
    results = []
    for model in (backbone, compiled):
        backbone.zero_grad()
        features = model(x)
        sum((feature**2).sum() for feature in features).backward()
        gradients = [parameter.grad.clone() for parameter in backbone.parameters()]
        results.append([*features, *gradients])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


@both
def test_out_indices_choose_the_maps(family):
    backbone = tiny(family).eval()
    x = image(64, 64)
    everything = backbone(x)
    backbone.out_indices = (1, 3)
    second, last = backbone(x)
    assert torch.equal(second, everything[1])
    assert torch.equal(last, everything[3])


@both
def test_the_number_of_image_channels_is_free(family):
    backbone = tiny(family, in_channels=5)
    assert len(backbone(torch.randn(1, 5, 32, 32, dtype=torch.float64))) == 4


FIRST_TWO_STAGES = tuple(
    f'{part}.{stage}.'
    for part in ('patch_embeds', 'layers', 'position_encodings', 'norm_list')
    for stage in (0, 1)
)


@both
@pytest.mark.parametrize(
    ('frozen_stages', 'frozen'),
    [(-1, ()), (0, ('patch_embeds.0.',)), (2, FIRST_TWO_STAGES)],
)
def test_frozen_stages_do_not_learn(family, frozen_stages, frozen):
    backbone = tiny(family, frozen_stages=frozen_stages).train()
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad != name.startswith(frozen), name


@both
def test_frozen_stages_stay_in_evaluation_mode(family):
    backbone = tiny(family, frozen_stages=1, drop_rate=0.5).train()
    assert not any(module.training for module in backbone.layers[0].modules())
    assert all(module.training for module in backbone.layers[1].modules())


@both
def test_norm_eval_keeps_normalizations_in_evaluation_mode(family):
    backbone = tiny(family, norm_eval=True).train()
    norms = [m for m in backbone.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert backbone.layers[0][0].ffn.training


@both
def test_norm_eps_is_the_official_one_at_each_place(family):
    for name, module in tiny(family).named_modules():
        if isinstance(module, torch.nn.LayerNorm):
            inside = name.startswith('patch_embeds') or name.endswith('attn.norm')
            assert module.eps == (1e-5 if inside else 1e-6), name


@both
def test_a_given_eps_holds_everywhere(family):
    backbone = tiny(family, norm_cfg=dict(type='LN', eps=1e-3))
    norms = [m for m in backbone.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-3}


@both
def test_linear_weights_start_as_the_official_ones(family):
    backbone = FAMILIES[family](arch='small')
    backbone.init_weights()
    state = backbone.state_dict()
    for name, value in state.items():
        if name.endswith(('in_proj_weight', 'qkv.weight', 'ffn.layers.1.weight')):
            assert value.std() == pytest.approx(0.02, rel=0.05), name
        if name.endswith('bias'):
            assert not value.any(), name
    fan_out = 3 * 3  # depth-wise
    encoding = state['position_encodings.3.proj.weight']
    assert encoding.std() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


@both
def test_channels_last_images_give_equal_output(family):
    backbone = tiny(family).eval()
    x = image(64, 64)
    for got, expected in zip(
        backbone(x.contiguous(memory_format=torch.channels_last)),
        backbone(x),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def test_the_builtins_spelling_of_window_sizes_is_deprecated():
    with pytest.warns(DeprecationWarning, match='write window_sizes'):
        backbone = SVT(arch='small', windiow_sizes=(5, 5, 5, 5))
    assert backbone.layers[0][0].attn.window_size == 5
