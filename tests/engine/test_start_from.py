"""Training that starts from a backbone, or from a segmentor of other classes."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS
from safetensors.torch import save_file
from torch import nn

from builders import tiny
from mmseg_twins.engine import StartFrom, start_from
from mmseg_twins.errors import CheckpointError, SettingError

CONV_SEG = ('decode_head.conv_seg.weight', 'decode_head.conv_seg.bias')


class Segmentor(nn.Module):
    """The names of a segmentor, and nearly nothing behind them."""

    def __init__(self, classes: int = 8, width: int = 4, auxiliary: int = 0) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, width, 1)
        self.decode_head = nn.Module()
        self.decode_head.convs = nn.Conv2d(width, width, 1)
        self.decode_head.conv_seg = nn.Conv2d(width, classes, 1)
        if auxiliary:
            self.auxiliary_head = nn.Module()
            self.auxiliary_head.convs = nn.Conv2d(width, auxiliary, 1)
            self.auxiliary_head.conv_seg = nn.Conv2d(auxiliary, classes, 1)


def start(
    model: nn.Module, checkpoint: Path | str | None, iteration: int = 0, **kwargs
):
    calls = []
    runner = SimpleNamespace(
        model=model,
        iter=iteration,
        logger=logging.getLogger('fake'),
        call_hook=lambda name, **kwargs: calls.append((name, kwargs)),
    )
    StartFrom(checkpoint=checkpoint and str(checkpoint), **kwargs).before_train(runner)
    return calls


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A segmentor of five classes."""
    path = tmp_path / 'source.pth'
    torch.save({'state_dict': Segmentor(classes=5).state_dict(), 'meta': {}}, path)
    return path


def weights(path: Path) -> dict:
    return torch.load(path, weights_only=True)['state_dict']


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('classes', [5, 8])
def test_all_but_the_classification_layer_is_loaded(source, suffix, classes, caplog):
    state = weights(source)
    if suffix == '.safetensors':
        source = source.with_suffix(suffix)
        save_file(state, source)
    model = Segmentor(classes)
    before = model.decode_head.conv_seg.weight.clone()
    with caplog.at_level('INFO'):
        start(model, source)
    assert torch.equal(model.backbone.weight, state['backbone.weight'])
    assert torch.equal(model.decode_head.conv_seg.weight, before)
    assert f'left out: {", ".join(CONV_SEG)}' in caplog.text


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_bare_backbone_leaves_the_heads_as_they_are(tmp_path, suffix, caplog):
    state = Segmentor().backbone.state_dict()
    path = tmp_path / f'backbone{suffix}'
    if suffix == '.safetensors':
        save_file(state, path, metadata={'format': 'pt'})
    else:
        torch.save(state, path)
    model = Segmentor(auxiliary=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with caplog.at_level('INFO'):
        start(model, path)
    for name, value in model.state_dict().items():
        expected = state.get(name.removeprefix('backbone.'), before[name])
        assert torch.equal(value, expected)
    assert 'loaded 2 tensors' in caplog.text
    assert caplog.text.endswith('left out: decode_head, auxiliary_head\n')


def test_the_norms_after_stages_may_be_missing_from_a_classifier(tmp_path):
    path = tmp_path / 'classifier.pth'
    backbone = tiny('SVT').float()
    norms = backbone.norm_list.state_dict(prefix='norm_list.')
    state = {k: v for k, v in backbone.state_dict().items() if k not in norms}
    model = Segmentor()
    model.backbone = tiny('SVT').float()
    before = model.backbone.norm_list[0].weight.clone()

    torch.save(state, path)
    start(model, path)
    assert torch.equal(model.backbone.state_dict()['norm_list.0.weight'], before)
    for name, value in state.items():
        assert torch.equal(model.backbone.state_dict()[name], value)

    torch.save({**state, 'norm_list.0.weight': before}, path)
    with pytest.raises(SettingError, match='7 tensors are missing'):
        start(model, path)


@pytest.mark.parametrize(('there', 'here'), [(2, 2), (2, 3), (2, 0), (0, 2)])
def test_an_auxiliary_head_is_loaded_if_it_fits(tmp_path, there, here):
    path = tmp_path / 'source.pth'
    state = Segmentor(classes=5, auxiliary=there).state_dict()
    torch.save({'state_dict': state}, path)
    model = Segmentor(auxiliary=here)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start(model, path)
    assert torch.equal(model.backbone.weight, state['backbone.weight'])
    if here:
        source = state if here == there else before
        name = 'auxiliary_head.convs.weight'
        assert torch.equal(model.state_dict()[name], source[name])


def test_hooks_that_follow_loading_see_the_weights(source):
    ((name, kwargs),) = start(Segmentor(), source)
    assert name == 'after_load_checkpoint'
    value = kwargs['checkpoint']['state_dict']['backbone.weight']
    assert torch.equal(value, weights(source)['backbone.weight'])


def test_a_resumed_training_keeps_its_weights(source):
    model = Segmentor()
    before = model.backbone.weight.clone()
    start(model, source, iteration=7)
    assert torch.equal(model.backbone.weight, before)


def test_without_a_checkpoint_training_starts_from_scratch():
    assert start(Segmentor(), None) == []


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        (
            lambda _: Segmentor(width=6).state_dict(),
            'backbone.weight is 6x3x1x1 in the checkpoint and 4x3x1x1 in the model',
        ),
        (
            lambda state: {k: v for k, v in state.items() if k != 'backbone.bias'},
            '1 tensor is missing (backbone.bias)',
        ),
        (
            lambda state: {**state, 'decode_head.conv_seg2': torch.zeros(1)},
            '1 tensor is unexpected (decode_head.conv_seg2)',
        ),
        (
            lambda _: {'patch_embeds.0.proj.weight': torch.zeros(1)},
            '`mmseg-twins convert` converts checkpoints of other projects',
        ),
        (
            lambda _: Segmentor(width=6).backbone.state_dict(),
            'backbone.weight is 6x3x1x1 in the checkpoint and 4x3x1x1 in the model',
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named_and_not_loaded(source, change, says):
    torch.save({'state_dict': change(weights(source))}, source)
    model = Segmentor()
    before = model.backbone.weight.clone()
    with pytest.raises(SettingError) as error:
        start(model, source)
    assert says in str(error.value)
    assert str(source) in str(error.value)
    assert torch.equal(model.backbone.weight, before)


def test_what_leave_out_names_may_differ(source):
    state = weights(source)
    more = {'auxiliary_head.convs.0.weight': torch.zeros(1)}
    torch.save({'state_dict': {**state, **more}}, source)
    model = Segmentor()
    start(model, source, leave_out=['decode_head.conv_seg', 'auxiliary_head'])
    assert torch.equal(model.backbone.weight, state['backbone.weight'])


class Hostile:
    def __reduce__(self):
        return print, ('this must not run',)


def test_a_checkpoint_that_would_run_code_is_refused(source, capsys):
    torch.save({'state_dict': weights(source), 'more': Hostile()}, source)
    with pytest.raises(CheckpointError, match=r'StartFrom: .*builtins.print'):
        start(Segmentor(), source)
    assert 'this must not run' not in capsys.readouterr().out


def test_a_missing_checkpoint_gets_one_sentence(source):
    with pytest.raises(CheckpointError, match=r'StartFrom: .*nowhere.pth'):
        start(Segmentor(), source.with_name('nowhere.pth'))


@pytest.mark.parametrize(
    ('name', 'says'),
    [
        ('svt-b', 'inherit from the config that these weights fit, twins_svt-b_uper'),
        ('svt-x', 'did you mean twins://svt-'),
    ],
)
def test_a_name_that_does_not_fit_is_answered_with_one_that_does(
    source, monkeypatch, name, says
):
    torch.save(Segmentor(width=6).backbone.state_dict(), source)
    if name == 'svt-b':
        monkeypatch.setattr(start_from, 'locate', lambda *_, **__: source)
    with pytest.raises(SettingError, match=re.escape(says)):
        start(Segmentor(), f'twins://{name}')


def test_leave_out_must_be_a_list():
    with pytest.raises(SettingError, match='not a list of names'):
        StartFrom(checkpoint=None, leave_out='decode_head.conv_seg')


def test_a_training_starts_from_a_segmentor_of_other_classes(demo, train, tmp_path):
    model = demo.model.copy()
    model.decode_head = {**model.decode_head, 'num_classes': 5}
    with DefaultScope.overwrite_default_scope('mmseg'):
        state = MODELS.build(model).state_dict()
    torch.save(dict(state_dict=state), tmp_path / 'source.pth')
    hook = dict(type='mmseg_twins.StartFrom', checkpoint=str(tmp_path / 'source.pth'))
    runner = train(
        custom_hooks=[hook, dict(type='mmseg_twins.CheckLabels')],
        train_cfg__max_iters=1,
        optim_wrapper__optimizer__lr=0.0,
        param_scheduler=[],
    )
    differing = [
        name
        for name, value in runner.model.named_parameters()
        if not torch.equal(value, state[name])
    ]
    assert tuple(differing) == CONV_SEG
