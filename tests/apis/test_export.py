"""The export form of a segmentor, traced once and right at every size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmseg_twins.apis.export import example_image, prepare, trace
from mmseg_twins.apis.exported import compare, load_program

SIZES = [(2, 64, 64), (1, 224, 224), (3, 96, 256), (1, 65, 93), (1, 100, 131)]


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.parametrize(
    ('family', 'head', 'align_corners'),
    [('SVT', 'UPerHead', False), ('PCPVT', 'FPNHead', True)],
)
def test_a_dynamic_program_is_right_at_every_size(
    make_segmentor, tmp_path, family, head, align_corners
):
    segmentor = make_segmentor(
        family,
        f'mmseg_twins.{head}',
        align_corners=align_corners,
        stages=4 if head == 'FPNHead' else 3,
    )
    form = prepare(segmentor)
    program = trace(form, batch=1, height=64, width=64, dynamic=True)
    torch.export.save(program, tmp_path / 'out.pt2')
    predict = load_program(tmp_path / 'out.pt2')
    for size in SIZES:
        difference = compare(predict, segmentor, form, size)
        assert difference.difference < 1e-9 * difference.largest, size


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
        (
            lambda s: setattr(s, 'decode_head', nn.Identity()),
            'the decode_head is Identity',
        ),
    ],
)
def test_what_cannot_be_exported_is_named(make_segmentor, change, message: str):
    segmentor = make_segmentor()
    change(segmentor)

    with pytest.raises(ValueError, match=message):
        prepare(segmentor)
