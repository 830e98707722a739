"""Which mmcv and mmsegmentation the package stands on.

mmsegmentation 1.2.2 asserts mmcv>=2.0.0rc4,<2.2.0 when it is imported; asked for
here, before that import, the answer is one sentence with the remedy.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

MMCV_MIN, MMCV_BELOW = Version('2.0.0rc4'), Version('2.2.0')
INSTALL_MMCV = "pip install 'mmcv-lite>=2.0.0rc4,<2.2.0'"
INSTALL_MMSEG = 'pip install mmsegmentation==1.2.2'


def installed(*distributions: str) -> dict[str, Version]:
    """The versions of those distributions that are installed, by name."""
    versions = {}
    for name in distributions:
        try:
            versions[name] = Version(version(name))
        except PackageNotFoundError:
            continue
    return versions


def check_versions() -> None:
    """Checks that mmcv or mmcv-lite, and mmsegmentation 1.x, are installed.

    Raises:
        ImportError: one is missing or of a version that cannot work.
    """
    mmcv = installed('mmcv', 'mmcv-lite')
    if not mmcv:
        raise ImportError(
            f'mmseg_twins needs mmcv, and none is installed; run: {INSTALL_MMCV}'
        )
    for name, found in mmcv.items():
        if not MMCV_MIN <= found < MMCV_BELOW:
            raise ImportError(
                f'{name} {found} does not work with mmsegmentation 1.x, which needs '
                f'{MMCV_MIN} or later, below {MMCV_BELOW}; run: '
                f'pip uninstall -y {name} && {INSTALL_MMCV}'
            )
    mmseg = installed('mmsegmentation')
    if not mmseg:
        raise ImportError(
            'mmseg_twins needs mmsegmentation 1.x, and none is installed; run: '
            f'{INSTALL_MMSEG}'
        )
    if mmseg['mmsegmentation'].major != 1:
        raise ImportError(
            f'mmseg_twins needs mmsegmentation 1.x and finds '
            f'{mmseg["mmsegmentation"]}; run: {INSTALL_MMSEG}'
        )
