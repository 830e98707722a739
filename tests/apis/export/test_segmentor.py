"""The export form computes what the segmentor does, at every size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from builders import tiny
from mmseg_twins.apis.export import prepare
from mmseg_twins.apis.export.backbone import attend_locally, run_backbone
from mmseg_twins.apis.export.checking import predict_logits
from mmseg_twins.apis.export.grids import cover_with_windows
from mmseg_twins.apis.export.segmentor import example_image
from mmseg_twins.models.backbones.attention import LSA

HEADS = ['mmseg_twins.UPerHead', 'UPerHead', 'mmseg_twins.FPNHead', 'FPNHead']
SIZES = [(64, 64), (224, 224), (96, 256), (65, 33), (100, 131)]


@torch.no_grad()
@pytest.mark.parametrize(
    'size', [(7, 7), (7, 8), (8, 7), (13, 20), (5, 3), (14, 21), (1, 1)]
)
def test_windows_of_one_size_attend_as_ragged_ones(size: tuple[int, int]):
    lsa = LSA(12, 3, 7).double()
    x = torch.randn(2, *size, 12, dtype=torch.float64)
    windows = cover_with_windows(*size, 7, x)

    result = attend_locally(lsa, x.flatten(1, 2), windows)

    torch.testing.assert_close(result, lsa(x).flatten(1, 2), rtol=1e-10, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize('family', ['PCPVT', 'SVT'])
@pytest.mark.parametrize('size', SIZES)
def test_backbone_gives_the_same_maps(family: str, size: tuple[int, int]):
    backbone = tiny(family).eval()
    image = torch.randn(2, 3, *size, dtype=torch.float64)

    for result, expected in zip(
        run_backbone(backbone, image), backbone(image), strict=True
    ):
        torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings('ignore:When align_corners')
@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('head', HEADS)
@pytest.mark.parametrize('family', ['PCPVT', 'SVT'])
def test_form_gives_the_logits_of_the_segmentor(
    make_segmentor, family: str, head: str, align_corners: bool
):
    segmentor = make_segmentor(family, head, align_corners=align_corners)
    form = prepare(segmentor)
    for size in SIZES:
        image = example_image(form, 2, *size)
        expected = predict_logits(segmentor, form, image)
        with torch.no_grad():
            result = form(image)

        assert expected.std() > 1e-3
        torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_classes_are_those_that_the_segmentor_predicts(make_segmentor):
    segmentor = make_segmentor()
    form = prepare(segmentor, output='classes')
    image = example_image(form, 2, 64, 96)

    samples = segmentor.predict(image)

    expected = torch.cat([one.pred_sem_seg.data for one in samples])
    assert len(expected.unique()) > 1
    assert torch.equal(form(image), expected)


@torch.no_grad()
@pytest.mark.parametrize('bgr_to_rgb', [True, False])
def test_embedded_preprocessing_is_that_of_the_config(make_segmentor, bgr_to_rgb: bool):
    segmentor = make_segmentor()
    segmentor.data_preprocessor.channel_conversion = bgr_to_rgb
    form = prepare(segmentor, embed_preprocessing=True)
    image = example_image(form, 1, 64, 96)
    read = dict(inputs=[image[0].flip(2).permute(2, 0, 1)], data_samples=[None])
    normalized = segmentor.data_preprocessor(read)['inputs'].double()

    result = form(image)

    expected = prepare(segmentor)(normalized)
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-4)


def test_the_segmentor_stays_as_it_is_and_shares_its_parameters(make_segmentor):
    segmentor = make_segmentor()
    before = {name: value.clone() for name, value in segmentor.state_dict().items()}
    modules = dict(segmentor.named_modules())
    form = prepare(segmentor)
    form(example_image(form, 1, 64, 64))

    assert dict(segmentor.named_modules()) == modules
    assert segmentor.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in segmentor.state_dict().items())
    own = {id(parameter) for parameter in segmentor.parameters()}
    assert {id(parameter) for parameter in form.parameters()} == own


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s: s.train(), 'training mode'),
        (lambda s: setattr(s, 'neck', nn.Identity()), 'the neck is Identity'),
        (lambda s: setattr(s, 'backbone', nn.Identity()), 'the backbone is Identity'),
        (lambda s: setattr(s, 'decode_head', nn.Identity()), 'head is Identity'),
    ],
)
def test_what_cannot_be_exported_is_named(make_segmentor, change, message: str):
    segmentor = make_segmentor()
    change(segmentor)

    with pytest.raises(ValueError, match=message):
        prepare(segmentor)
