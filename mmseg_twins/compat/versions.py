"""Check that one stack of packages is installed, in supported versions.

OpenMMLab's packages and the ``onedl-`` ones have the same modules, and so have mmcv and
mmcv-lite. pip silently installs one over the other, which leaves a mixture of files.
"""

from __future__ import annotations

from importlib import metadata
from typing import NamedTuple

from packaging.specifiers import SpecifierSet

from .stacks import MMCV, STACKS

FORK = 'onedl-'
MIM = {'openmim', 'onedl-mim'}  # of either stack
NAMES = MIM.union(*STACKS.values())
INSTALL = "pip install 'mmseg_twins[{}]'"
INSTALL_LITE = f"pip install 'mmcv-lite{MMCV}'"


class Problem(NamedTuple):
    """A problem in one sentence, and the command that fixes it, if any."""

    says: str
    command: str | None


def version(distribution: str) -> str | None:
    """Return a distribution's version, or None if it is not installed."""
    try:
        return metadata.version(distribution) or None
    except (metadata.PackageNotFoundError, KeyError):  # KeyError: damaged metadata
        return None


def find_problem() -> Problem | None:
    """Find a mixture of stacks, a missing package, or an unsupported version."""
    found = {name: version(name) for name in sorted(NAMES) if version(name)}
    forks = [name for name in found if name.startswith(FORK)]
    if forks and len(forks) < len(found):
        extras = 'lite,mim' if MIM & found.keys() else 'lite'
        return Problem(
            f"{', '.join(found)} are installed and overwrite each other's files: "
            'choose mmseg_twins[lite] or mmseg_twins[onedl]',
            f'pip uninstall -y {" ".join(found)} && {INSTALL.format(extras)}',
        )
    if {'mmcv', 'mmcv-lite'} <= found.keys():
        return Problem(
            "mmcv and mmcv-lite are both installed and overwrite each other's files",
            f'pip uninstall -y mmcv mmcv-lite && {INSTALL_LITE}',
        )
    extra = 'onedl' if forks else 'full' if 'mmcv' in found else 'lite'
    stack = STACKS[extra]
    if not found.keys() & stack.keys():
        return Problem(
            'mmseg_twins needs mmsegmentation, mmengine and an mmcv, and none is '
            'installed',
            f'{INSTALL.format("lite")}, or {INSTALL.format("onedl")}',
        )
    for name, allowed in stack.items():
        command = f"pip install '{name}{allowed}'"
        if name not in found:
            return Problem(f'{name} is not installed', command)
        if not SpecifierSet(allowed).contains(found[name], prereleases=True):
            if name == 'mmcv':  # pip would have to compile it
                command = f'pip uninstall -y mmcv && {INSTALL_LITE}'
            return Problem(
                f'{name} {found[name]} is installed, but mmseg_twins needs {allowed}',
                command,
            )
    return None


def check_versions() -> None:
    """Check that one stack is installed, in supported versions.

    Raises:
        ImportError: it is not; the message has the command that fixes it.
    """
    problem = find_problem()
    if problem:
        raise ImportError(f'{problem.says}; run: {problem.command}')
