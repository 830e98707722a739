"""Check the installed versions of mmcv and mmsegmentation.

mmsegmentation 1.2.2 asserts mmcv<2.2.0 when it is imported; a check before that import
can name the command that fixes it. The lower bounds are the minimum versions that the
tests have been run with (requirements/oldest.txt).
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

MMCV_MIN, MMCV_BELOW = Version('2.1.0'), Version('2.2.0')
MMSEG_MIN, MMSEG_BELOW = Version('1.2.2'), Version('2.0.0')
INSTALL_MMCV = f"pip install 'mmcv-lite>={MMCV_MIN},<{MMCV_BELOW}'"
INSTALL_MMSEG = f'pip install mmsegmentation=={MMSEG_MIN}'


def installed(*distributions: str) -> dict[str, Version]:
    """Return the versions of those distributions that are installed, by name."""
    versions = {}
    for name in distributions:
        try:
            versions[name] = Version(version(name))
        except PackageNotFoundError:
            continue
    return versions


def check_versions() -> None:
    """Check that mmcv or mmcv-lite, and mmsegmentation, are installed.

    Raises:
        ImportError: one is missing or of an unsupported version.
    """
    mmcv = installed('mmcv', 'mmcv-lite')
    if not mmcv:
        raise ImportError(
            f'mmseg_twins needs mmcv, and none is installed; run: {INSTALL_MMCV}'
        )
    for name, found in mmcv.items():
        if not MMCV_MIN <= found < MMCV_BELOW:
            raise ImportError(
                f'{name} {found} does not work: mmsegmentation {MMSEG_MIN} and '
                f'mmseg_twins need {MMCV_MIN} or later, below {MMCV_BELOW}; run: '
                f'pip uninstall -y {name} && {INSTALL_MMCV}'
            )
    mmseg = installed('mmsegmentation')
    if not mmseg:
        raise ImportError(
            f'mmseg_twins needs mmsegmentation {MMSEG_MIN}, and none is installed; '
            f'run: {INSTALL_MMSEG}'
        )
    found = mmseg['mmsegmentation']
    if not MMSEG_MIN <= found < MMSEG_BELOW:
        raise ImportError(
            f'mmseg_twins needs mmsegmentation {MMSEG_MIN} or later, below '
            f'{MMSEG_BELOW}, and finds {found}; run: {INSTALL_MMSEG}'
        )
