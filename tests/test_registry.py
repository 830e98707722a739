"""How configs reach the backbones."""

from __future__ import annotations

import importlib
import subprocess
import sys

import mmseg.models  # noqa: F401, registers the built-in classes
import pytest
from mmengine.hub import get_config
from mmseg.registry import MODELS

from mmseg_twins.models.backbones import PCPVT, SVT

BUILTIN_CONFIGS = [
    ('twins/twins_pcpvt-s_uperhead_8xb4-160k_ade20k-512x512.py', PCPVT),
    ('twins/twins_svt-s_fpn_fpnhead_8xb4-80k_ade20k-512x512.py', SVT),
]


@pytest.fixture
def drop_in(monkeypatch):
    """Imports ``mmseg_twins.drop_in`` and undoes what it registered."""
    monkeypatch.setattr(MODELS, '_module_dict', dict(MODELS.module_dict))
    sys.modules.pop('mmseg_twins.drop_in', None)
    yield importlib.import_module('mmseg_twins.drop_in')
    sys.modules.pop('mmseg_twins.drop_in', None)


@pytest.mark.parametrize(('name', 'family'), [('PCPVT', PCPVT), ('SVT', SVT)])
def test_the_scoped_type_is_ours_and_the_bare_one_the_builtins(name, family):
    assert MODELS.get(f'mmseg_twins.{name}') is family
    assert MODELS.get(name).__module__ == 'mmseg.models.backbones.twins'


def test_a_scoped_type_works_without_importing_the_package():
    code = (
        'from mmengine.registry import MODELS\n'
        "backbone = MODELS.build(dict(type='mmseg_twins.SVT', arch='small'))\n"
        'print(type(backbone).__module__)'
    )
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, timeout=120
    )
    assert result.stdout.strip() == 'mmseg_twins.models.backbones.twins', result.stderr


@pytest.mark.parametrize(('config', 'family'), BUILTIN_CONFIGS)
@pytest.mark.filterwarnings('ignore:windiow_sizes:DeprecationWarning')
def test_drop_in_serves_the_builtins_configs(drop_in, config, family):
    backbone = get_config(f'mmseg::{config}').model.backbone
    assert isinstance(MODELS.build(backbone), family)


def test_drop_in_takes_the_builtins_positional_arguments(drop_in):
    backbone = drop_in.SVT(1, [8, 16, 24], [4, 2, 2], [4, 2, 2], [1, 2, 4])
    assert backbone.in_channels == 1
    assert backbone.sizes.embed_dims == (8, 16, 24)
    assert backbone.sizes.num_heads == (1, 2, 4)
