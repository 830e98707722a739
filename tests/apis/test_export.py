"""Export of a segmentor: what is traced once is right at every size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import ConfigDict
from mmseg.models import SegDataPreProcessor
from torch import nn

from mmseg_twins.apis.export import (
    describe_resizing,
    example_image,
    prepare,
    trace,
    use_package_heads,
    write_onnx,
    write_program,
)
from mmseg_twins.apis.exported import DifferenceError, compare, load_program
from mmseg_twins.errors import SettingError

# One window of 7 in the last stage, several images, sides that patches do not divide.
SIZES = [(2, 64, 64), (1, 56, 40), (3, 96, 112), (1, 65, 93)]


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_a_dynamic_program_is_right_at_every_size(make_segmentor, tmp_path):
    segmentor = make_segmentor(
        'SVT', 'mmseg_twins.FPNHead', stages=2, depths=(2, 1), align_corners=True
    )
    form = prepare(segmentor)
    program = trace(form, batch=1, height=64, width=64, dynamic=True)
    write_program(program, tmp_path / 'out.pt2', {})
    predict = load_program(tmp_path / 'out.pt2')
    for size in SIZES:
        difference = compare(predict, segmentor, form, size)
        assert difference.difference < 1e-9 * difference.largest, size


@torch.no_grad()
@pytest.mark.parametrize('size', [(150, 171), (64, 64), (64, 107)])
def test_the_page_predicts_in_windows_as_the_segmentor_does(
    make_segmentor, tmp_path, size
):
    onnxruntime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript', reason='comes with the extra `deploy`')
    page = (Path(__file__).parents[2] / 'docs/deployment.md').read_text('utf-8')
    (block,) = [
        block
        for block in page.split('```python\n')
        if 'def predict_in_windows' in block
    ]
    text, _ = block.split('\n\n\nsession = ')
    names: dict = {}
    exec(text, names)
    segmentor = make_segmentor(stages=2, depths=(1, 1)).float()
    program = trace(prepare(segmentor), batch=1, height=64, width=64, dynamic=False)
    write_onnx(program, tmp_path / 'out.onnx', {}, output='logits', opset=None)
    session = onnxruntime.InferenceSession(tmp_path / 'out.onnx')
    image = torch.randn(3, *size)

    labels = names['predict_in_windows'](session, image.numpy(), window=64, stride=43)

    segmentor.test_cfg = ConfigDict(
        mode='slide', crop_size=(64, 64), stride=(43, 43), keep_logits=True
    )
    (sample,) = segmentor.predict(image[None])
    logits = sample.seg_logits.data
    differ = torch.from_numpy(labels) != sample.pred_sem_seg.data[0]
    largest = logits.topk(2, dim=0).values
    assert len(sample.pred_sem_seg.data.unique()) > 1
    assert not (differ & (largest[0] - largest[1] > 1e-5 * logits.abs().max())).any()


def test_what_is_not_resized_inside_is_said():
    resize = dict(type='Resize', scale=(2048, 512), keep_ratio=True)
    cfg = ConfigDict(test_dataloader=dict(dataset=dict(pipeline=[resize])))
    text = 'not resized inside: resize before'

    assert describe_resizing(cfg) == (
        f'{text} as in the config, Resize(scale=(2048, 512), keep_ratio=True)'
    )
    assert describe_resizing(ConfigDict()) == text


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
    segmentor.data_preprocessor = SegDataPreProcessor(
        mean=[120.0, 110.0, 100.0], std=[60.0, 55.0, 50.0], bgr_to_rgb=bgr_to_rgb
    ).double()
    form = prepare(segmentor, embed_preprocessing=True)
    image = example_image(form, 1, 64, 96)
    read = dict(inputs=[image[0].flip(2).permute(2, 0, 1)], data_samples=[None])
    normalized = segmentor.data_preprocessor(read)['inputs'].double()

    result = form(image)

    expected = prepare(segmentor)(normalized)
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-4)


def test_the_segmentor_does_not_change_and_shares_its_parameters(make_segmentor):
    segmentor = make_segmentor()
    modules = dict(segmentor.named_modules())
    form = prepare(segmentor)
    form(example_image(form, 1, 64, 64))

    assert dict(segmentor.named_modules()) == modules
    own = {id(parameter) for parameter in segmentor.parameters()}
    assert {id(parameter) for parameter in form.parameters()} == own


@pytest.mark.parametrize(
    ('given', 'expected'),
    [
        ('UPerHead', 'mmseg_twins.UPerHead'),
        ('mmseg.FPNHead', 'mmseg_twins.FPNHead'),
        ('ASPPHead', 'ASPPHead'),
    ],
)
def test_heads_that_are_here_replace_mmsegmentations(given, expected):
    cfg = ConfigDict(model=dict(decode_head=dict(type=given)))
    use_package_heads(cfg)
    assert cfg.model.decode_head.type == expected


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s: s.train(), 'training mode'),
        (
            lambda s: setattr(s, 'decode_head', nn.Identity()),
            'the model is EncoderDecoder with Identity',
        ),
        (lambda s: delattr(s.data_preprocessor, 'mean'), 'has no mean'),
    ],
)
def test_what_cannot_be_exported_is_named(make_segmentor, change, message: str):
    segmentor = make_segmentor()
    change(segmentor)

    with pytest.raises(SettingError, match=message):
        prepare(segmentor, embed_preprocessing=True)


@pytest.mark.filterwarnings('ignore')
def test_a_model_that_cannot_be_traced_gets_one_sentence(make_segmentor):
    class Stubborn(nn.Module):
        def forward(self, x):
            if x.sum() > 0:
                return (x,)
            return (x, x)

    segmentor = make_segmentor(stages=1)
    segmentor.backbone = Stubborn()

    with pytest.raises(
        SettingError, match='PyTorch cannot trace this model with fixed sizes: '
    ) as found:
        trace(prepare(segmentor), batch=1, height=64, width=64, dynamic=False)
    assert '\n' not in str(found.value)


def test_a_file_that_fails_at_a_size_is_wrong(make_segmentor):
    def predict(image):
        raise RuntimeError('Concat: sizes differ\nmore')

    segmentor = make_segmentor()
    with pytest.raises(DifferenceError, match='at 1 x 64x64 the file fails: Concat'):
        compare(predict, segmentor, prepare(segmentor), (1, 64, 64))


def test_classes_are_as_wrong_as_the_logits_that_lead_to_them(make_segmentor):
    segmentor = make_segmentor()
    form = prepare(segmentor, output='classes')
    size = (1, 64, 64)
    right = compare(form, segmentor, form, size)
    wrong = compare(lambda image: (form(image) + 1) % 5, segmentor, form, size)

    assert right.passes
    assert right.difference == right.other == 0
    assert not wrong.passes
    assert wrong.other == 1


@torch.no_grad()
@pytest.mark.parametrize(
    ('share', 'fp16_weights', 'passes'),
    [(4e-3, True, True), (6e-3, True, False), (4e-3, False, False)],
)
def test_weights_in_half_precision_may_differ_more(
    make_segmentor, share: float, fp16_weights: bool, passes: bool
):
    segmentor = make_segmentor()
    form = prepare(segmentor)
    difference = compare(
        lambda image: form(image) * (1 + share),
        segmentor,
        form,
        (1, 64, 64),
        fp16_weights=fp16_weights,
    )

    assert difference.passes == passes
