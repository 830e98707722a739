"""What is missing, mixed or too new is said in one sentence with its remedy."""

from __future__ import annotations

import pytest

from mmseg_twins.compat import versions

LITE = {'mmengine': '0.10.7', 'mmcv-lite': '2.1.0', 'mmsegmentation': '1.2.2'}
FULL = {'mmengine': '0.10.7', 'mmcv': '2.1.0', 'mmsegmentation': '1.2.2'}
ONEDL = {
    'onedl-mmengine': '0.10.12',
    'onedl-mmcv': '2.3.6',
    'onedl-mmsegmentation': '1.4.2',
}


@pytest.fixture
def pretend(monkeypatch):
    """Makes ``check_versions`` see these distributions and no others."""

    def install(found: dict[str, str | None]) -> None:
        monkeypatch.setattr(versions, 'version', found.get)

    return install


@pytest.mark.parametrize(
    'found',
    [
        LITE,
        FULL,
        ONEDL,
        LITE | {'mmcv-lite': '2.1.99', 'openmim': '0.3.9'},
        ONEDL | {'onedl-mmcv': '2.3.7', 'onedl-mim': '0.5.1'},
    ],
)
def test_versions_that_work_pass(pretend, found):
    pretend(found)
    assert versions.check_versions() is None


@pytest.mark.parametrize(
    ('found', 'message'),
    [
        (
            {},
            r"none is .*; run: pip install '.*\[lite\]', or pip install '.*\[onedl\]'",
        ),
        (
            FULL | LITE,
            '^mmcv and mmcv-lite are both .*: pip uninstall -y mmcv mmcv-lite &',
        ),
        (LITE | {'mmcv-lite': None}, "^mmcv-lite is not .*; run: pip install 'mmcv-li"),
        (LITE | {'mmsegmentation': None}, "^mmsegmentation is not .*: pip install 'mm"),
        (
            ONEDL | {'onedl-mmcv': None},
            "^onedl-mmcv is not .*; run: pip install 'onedl",
        ),
        (
            FULL | {'mmcv': '2.2.0'},
            'mmcv 2.2.0 is installed, but .*: pip uninstall -y mmcv && pip install',
        ),
        (FULL | {'mmcv': '2.0.1'}, '^mmcv 2.0.1 is installed, but .* needs >=2.1.0'),
        (
            LITE | {'mmcv-lite': '2.2.0'},
            "^mmcv-lite 2.2.0 .*; run: pip install 'mmcv-l",
        ),
        (LITE | {'mmsegmentation': '1.1.0'}, '^mmsegmentation 1.1.0 is installed, but'),
        (LITE | {'mmsegmentation': '2.0.0'}, '^mmsegmentation 2.0.0 is installed, but'),
        (LITE | {'mmengine': '0.9.0'}, '^mmengine 0.9.0 is installed, but'),
        (
            ONEDL | {'onedl-mmengine': '0.11.0'},
            '^onedl-mmengine 0.11.0 is installed, but',
        ),
    ],
)
def test_what_cannot_work_is_an_import_error_with_the_command(pretend, found, message):
    pretend(found)
    with pytest.raises(ImportError, match=message):
        versions.check_versions()


@pytest.mark.parametrize(
    ('more', 'extras'),
    [
        (LITE, 'lite'),
        ({'mmengine': '0.10.7'}, 'lite'),
        ({'openmim': '0.3.9'}, 'lite,mim'),
    ],
)
def test_packages_of_both_stacks_are_removed_together(pretend, more, extras):
    pretend(ONEDL | more)
    with pytest.raises(ImportError, match="overwrite each other's files") as error:
        versions.check_versions()
    command = str(error.value).partition('; run: pip uninstall -y ')[2]
    removed, _, installed = command.partition(' && ')
    assert set(removed.split()) == {*ONEDL, *more}
    assert installed == f"pip install 'mmseg_twins[{extras}]'"
