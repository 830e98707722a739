"""mmengine and mmcv look for compiled ops where Python has no ``find_loader``."""

from __future__ import annotations

import pkgutil

import pytest
from mmcv.utils.ext_loader import check_ops_exist
from mmengine.utils.dl_utils.misc import mmcv_full_available

from mmseg_twins.compat import find_loader, ops


@pytest.mark.filterwarnings('ignore:.*find_loader:DeprecationWarning')
@pytest.mark.parametrize('look', [check_ops_exist, mmcv_full_available])
def test_compiled_ops_are_looked_for_on_python_3_14(look, monkeypatch):
    monkeypatch.delattr(pkgutil, 'find_loader', raising=False)
    monkeypatch.setattr(pkgutil, 'find_loader', None, raising=False)
    del pkgutil.find_loader

    find_loader.add_to_pkgutil()

    assert look() == ops.has_compiled_ops()


def test_python_keeps_its_own(monkeypatch):
    monkeypatch.setattr(pkgutil, 'find_loader', len, raising=False)
    find_loader.add_to_pkgutil()
    assert pkgutil.find_loader is len
