"""Every layout in circulation is recognized and leads to mmsegmentation's names."""

from __future__ import annotations

import re

import pytest
import torch

from builders import (
    RECORDED,
    VARIANTS,
    digest,
    meta_state,
    random_state,
    shapes_of,
)
from mmseg_twins.checkpoints.conversion import convert_state_dict
from mmseg_twins.checkpoints.layouts import LAYOUTS
from mmseg_twins.checkpoints.patterns import Renaming, compile_template, rename

# A layout, what it is found to be, and the layout that it becomes.
LAYOUT_PAIRS = [
    ('official-cls', 'official classifier', 'mmseg'),
    ('official-seg', 'official', 'mmseg'),
    ('official-upernet', 'official segmentor', 'mmseg-upernet'),
    ('official-fpn', 'official segmentor', 'mmseg-fpn'),
    ('mmseg', 'mmsegmentation backbone', 'mmseg'),
    ('mmseg-upernet', 'mmsegmentation segmentor', 'mmseg-upernet'),
    ('mmseg-fpn', 'mmsegmentation segmentor', 'mmseg-fpn'),
]


def shapes_in(state) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize('recorded', RECORDED)
def test_layouts_written_out_here_are_the_recorded_ones(recorded):
    layout, variant = recorded.rsplit('_', 1)
    shapes = shapes_of(layout, variant)

    assert len(shapes) == RECORDED[recorded]['tensors']
    assert digest(shapes) == RECORDED[recorded]['sha256']


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize(('layout', 'found', 'target'), LAYOUT_PAIRS)
def test_layout_is_found_and_becomes_mmsegmentations(layout, found, target, variant):
    state, report = convert_state_dict(meta_state(shapes_of(layout, variant)))

    assert report.found.startswith(found)
    assert report.variant == variant
    wanted = shapes_of(target, variant)
    for name in report.missing:
        assert re.fullmatch(r'norm_list\.\d\.(weight|bias)', name)
        del wanted[name]
    assert shapes_in(state) == wanted


@pytest.mark.parametrize('variant', VARIANTS)
def test_sssegmentation_becomes_a_whole_segmentor(variant):
    state, report = convert_state_dict(meta_state(shapes_of('ssseg-upernet', variant)))

    assert report.found == 'sssegmentation segmentor'
    assert report.variant == variant
    ours = shapes_of('mmseg-upernet', variant)
    # Its heads have other widths than mmsegmentation's configs: the names are equal.
    assert state.keys() == ours.keys()
    assert {
        name: shape
        for name, shape in shapes_in(state).items()
        if name.startswith('backbone.')
    } == {name: shape for name, shape in ours.items() if name.startswith('backbone.')}
    assert state['auxiliary_head.convs.0.conv.weight'].shape[0] == 512


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('layout', ['mmseg', 'mmseg-upernet', 'mmseg-fpn'])
def test_the_way_to_the_official_layout_gives_its_names(layout, variant):
    state, report = convert_state_dict(
        meta_state(shapes_of(layout, variant)), to='official'
    )

    wanted = shapes_of(layout.replace('mmseg', 'official'), variant)
    dropped = re.compile(r'(backbone\.)?(head|norm)\.(weight|bias)')
    assert shapes_in(state) == {
        name: shape for name, shape in wanted.items() if not dropped.fullmatch(name)
    }
    assert report.written.startswith('official')


@pytest.mark.parametrize(
    ('layout', 'variant', 'to'),
    [
        ('mmseg', 'pcpvt-s', 'official'),
        ('mmseg-fpn', 'svt-s', 'official'),
        ('official-seg', 'svt-s', 'mmseg'),
    ],
)
def test_there_and_back_is_bit_equal(layout, variant, to):
    state = random_state(shapes_of(layout, variant))

    there, _ = convert_state_dict(state, to=to)
    back = {'official': 'mmseg', 'mmseg': 'official'}[to]
    again, report = convert_state_dict(there, to=back)

    dropped = {'head.weight', 'head.bias', 'norm.weight', 'norm.bias'}
    assert again.keys() == state.keys() - dropped
    assert all(torch.equal(again[name], state[name]) for name in again)
    pairs = sum('.attn.q.' in name for name in {*state, *there})
    counts = (report.merged, report.split)
    assert counts == ((0, 2 * pairs) if back == 'official' else (2 * pairs, 0))


@pytest.mark.parametrize('layout', LAYOUTS, ids=lambda layout: layout.project)
@pytest.mark.parametrize('family', ['pcpvt', 'svt'])
def test_every_rule_leads_back_to_where_it_came_from(layout, family):
    renaming = Renaming((*layout.backbone, *layout.heads), family)
    slots = {'i': '1', 'j': '1', 'gsa': '1', 'lsa': '0', 'p': 'bias', 'rest': 'x.y'}
    for rule in (*layout.backbone, *layout.heads):
        if family == 'pcpvt' and '{lsa}' in rule.target:
            continue
        sources = [name.format(**slots) for name in rule.sources]
        tensors = [torch.full((2 * share,), float(share)) for share in rule.shares]
        there = renaming.forwards(dict(zip(sources, tensors, strict=True)))
        back = renaming.backwards(there)

        assert list(there) == [rule.target.format(**slots)]
        assert list(back) == sources
        assert all(map(torch.equal, back.values(), tensors))


def test_templates_match_whole_names_and_dots_only_dots():
    pattern = compile_template('blocks.{i}.{gsa}.attn.q.{p}', 'svt')

    assert pattern.fullmatch('blocks.2.11.attn.q.weight')
    assert not pattern.fullmatch('blocks.2.10.attn.q.weight')  # attends locally
    assert not pattern.fullmatch('xblocks.2.11.attn.q.weight')
    assert not pattern.fullmatch('blocks.2.11.attn.q.weight.x')
    assert not pattern.fullmatch('blocks.2.11.attnxq.weight')


def test_a_name_without_a_rule_is_an_error():
    renaming = Renaming([rename('a.{p}', 'b.{p}')], 'svt')

    with pytest.raises(KeyError, match='c.weight'):
        renaming.forwards({'c.weight': torch.zeros(1)})
    with pytest.raises(KeyError, match='a.weight'):
        renaming.backwards({'a.weight': torch.zeros(1)})
