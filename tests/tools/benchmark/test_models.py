"""The models that are compared."""

from __future__ import annotations

import pytest
import torch
from benchmarking import BenchmarkError, Case, models
from benchmarking.cases import HEADS
from benchmarking.models import BUILTIN, PACKAGE
from torch import nn

from mmseg_twins.checkpoints.models import VARIANTS

pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.mark.parametrize('head', HEADS)
@pytest.mark.parametrize('variant', VARIANTS)
def test_every_model_has_a_config_on_both_sides(variant, head):
    ours = models.find_config(PACKAGE, variant, head)
    theirs = models.find_config(BUILTIN, variant, head)
    assert ours != theirs
    for path in (ours, theirs):
        assert f'_{variant}_' in path.name
        assert ('fpn' in path.name) == (head == 'fpn')


def test_a_missing_config_is_named():
    with pytest.raises(BenchmarkError, match='no config twins_svt-x_uperhead'):
        models.find_config(PACKAGE, 'svt-x', 'none')


@pytest.mark.usefixtures('small_models')
@pytest.mark.parametrize('head', HEADS)
@pytest.mark.parametrize('variant', ['pcpvt-s', 'svt-s'])
def test_weights_fit_both_sides(variant, head):
    case = Case(variant, head, 'train', 'fp32', 2, 64, 64)
    weights = models.make_weights(case, 0)
    for implementation in (PACKAGE, BUILTIN):
        model, _ = models.build_model(implementation, case)
        models.load_weights(model, weights)
        for name, value in model.state_dict().items():
            assert torch.equal(value, weights[name]), name
        assert not any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())


@pytest.mark.usefixtures('small_models')
def test_the_sides_are_the_packages_and_mmsegmentations():
    case = Case('svt-s', 'none', 'train', 'fp32', 2, 64, 64)
    modules = [
        type(models.build_model(name, case)[0]).__module__
        for name in (PACKAGE, BUILTIN)
    ]
    assert modules == [
        'mmseg_twins.models.backbones.twins',
        'mmseg.models.backbones.twins',
    ]


@pytest.mark.usefixtures('small_models')
def test_weights_depend_on_the_seed_alone():
    case = Case('pcpvt-s', 'none', 'train', 'fp32', 2, 64, 64)
    torch.manual_seed(1)
    first = models.make_weights(case, 3)
    torch.manual_seed(2)
    second, other = models.make_weights(case, 3), models.make_weights(case, 4)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.usefixtures('small_models')
def test_no_parameter_is_at_a_special_value():
    case = Case('svt-s', 'none', 'train', 'fp32', 2, 64, 64)
    for name, value in models.make_weights(case, 0).items():
        assert value.std() > 0.01, name


@pytest.mark.usefixtures('small_models')
def test_weights_that_do_not_fit_are_one_sentence():
    case = Case('pcpvt-s', 'none', 'train', 'fp32', 2, 64, 64)
    model, _ = models.build_model(PACKAGE, case)
    weights = models.make_weights(case, 0)
    weights.popitem()
    with pytest.raises(BenchmarkError, match='the weights do not fit PCPVT') as error:
        models.load_weights(model, weights)
    assert '\n' not in str(error.value)


def test_timms_maps_are_the_packages():
    pytest.importorskip('timm')
    case = Case('pcpvt-s', 'none', 'inference', 'fp32', 1, 64, 96)
    weights = models.make_weights(case, 0)
    x = torch.randn(1, 3, 64, 96)
    maps = []
    for implementation in (PACKAGE, models.TIMM):
        model, _ = models.build_model(implementation, case)
        models.load_weights(model, weights)
        with torch.no_grad():
            maps.append(list(model.eval()(x)))
    # The norms' epsilon is not the same.
    torch.testing.assert_close(*maps, rtol=1e-3, atol=1e-3)
