"""What is missing or too new is said in one sentence with its remedy."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest

from mmseg_twins.compat import versions


@pytest.fixture
def pretend(monkeypatch):
    """Makes ``check_versions`` see these distributions and no others."""

    def install(**found):
        def version(name):
            try:
                return found[name.replace('-', '_')]
            except KeyError:
                raise PackageNotFoundError(name) from None

        monkeypatch.setattr(versions, 'version', version)

    return install


@pytest.mark.parametrize('mmcv', ['2.1.0', '2.1.99'])
@pytest.mark.parametrize('name', ['mmcv', 'mmcv_lite'])
def test_versions_that_work_pass(pretend, name, mmcv):
    pretend(**{name: mmcv}, mmsegmentation='1.2.2')
    assert versions.check_versions() is None


@pytest.mark.parametrize(
    ('found', 'message'),
    [
        (dict(mmsegmentation='1.2.2'), 'needs mmcv, and none.*pip install .mmcv-lite'),
        (
            dict(mmcv='2.2.0', mmsegmentation='1.2.2'),
            'mmcv 2.2.0 does not work.*pip uninstall -y mmcv && pip install',
        ),
        (
            dict(mmcv_lite='2.2.0', mmsegmentation='1.2.2'),
            'mmcv-lite 2.2.0 does not work.*pip uninstall -y mmcv-lite',
        ),
        (dict(mmcv='1.7.1', mmsegmentation='1.2.2'), 'mmcv 1.7.1 does not work'),
        (dict(mmcv='2.0.1', mmsegmentation='1.2.2'), 'mmcv 2.0.1 does not work'),
        (
            dict(mmcv='2.1.0'),
            'needs mmsegmentation 1.2.2, and none.*pip install mmsegm',
        ),
        (dict(mmcv='2.1.0', mmsegmentation='1.1.0'), 'finds 1.1.0.*pip install'),
        (dict(mmcv='2.1.0', mmsegmentation='0.30.0'), 'finds 0.30.0.*pip install'),
        (dict(mmcv='2.1.0', mmsegmentation='2.0.0'), 'finds 2.0.0.*pip install'),
    ],
)
def test_what_cannot_work_is_an_import_error_with_the_command(pretend, found, message):
    pretend(**found)
    with pytest.raises(ImportError, match=message):
        versions.check_versions()
