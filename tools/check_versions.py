"""Check that the installed packages are those of requirements/tested.txt.

The onedl packages are pinned in requirements/tested-onedl.txt. Every package that
mmseg_twins and its extras need, directly or indirectly, must be pinned there and
installed in the pinned version. Exits with status 1 if one is not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = 'mmseg-twins'
REQUIREMENTS = Path(__file__).resolve().parents[1] / 'requirements'


def read_pins(path: Path) -> dict[str, Requirement]:
    """Read the pins for this Python and platform, by canonical name."""
    lines = (line.partition('#')[0].strip() for line in path.read_text().splitlines())
    pins = [Requirement(line) for line in lines if line]
    return {
        canonicalize_name(pin.name): pin
        for pin in pins
        if pin.marker is None or pin.marker.evaluate()
    }


def installed_packages() -> dict[str, Distribution]:
    """Return the installed packages by canonical name; the first on the path counts."""
    found: dict[str, Distribution] = {}
    for package in distributions():
        found.setdefault(canonicalize_name(package.name), package)
    return found


def installed_stack(installed: Mapping[str, Distribution]) -> tuple[str, Path]:
    """Return the extras of the installed stack, and the file that pins it."""
    if 'onedl-mmengine' in installed:
        return 'onedl', REQUIREMENTS / 'tested-onedl.txt'
    mmcv = 'full' if 'mmcv' in installed else 'lite'
    return f'{mmcv},mim', REQUIREMENTS / 'tested.txt'


def needed_packages(
    installed: Mapping[str, Distribution], extras: Iterable[str]
) -> set[str]:
    """Return the packages that the project and its extras need, even indirectly.

    pip is left out: openmim needs it, but every environment has its own.
    """
    seen = set()
    waiting = [(PROJECT, extra) for extra in ('', *extras)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        requires = installed[name].requires if name in installed else None
        for requirement in map(Requirement, requires or ()):
            marker = requirement.marker
            if marker is None or marker.evaluate({'extra': extra}):
                wanted = canonicalize_name(requirement.name)
                waiting += [(wanted, inner) for inner in ('', *requirement.extras)]
    return {name for name, _ in seen} - {PROJECT, 'pip'}


def main(argv: list[str] | None = None) -> int:
    """Compare, print the differences, and return the exit status."""
    installed = installed_packages()
    stack, tested = installed_stack(installed)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--extras',
        default=f'{stack},deploy,tiff,test',
        help='comma-separated extras of mmseg_twins to include (default: %(default)s)',
    )
    parser.add_argument(
        '--pins', type=Path, default=tested, help='pins to check (default: %(default)s)'
    )
    args = parser.parse_args(argv)
    if PROJECT not in installed:
        parser.error('mmseg_twins is not installed')
    extras = args.extras.split(',')
    known = installed[PROJECT].metadata.get_all('Provides-Extra') or []
    if unknown := set(extras) - set(known):
        parser.error(f'no extra {min(unknown)!r}; choose from {", ".join(known)}')
    pins = read_pins(args.pins)
    needed = needed_packages(installed, extras)
    problems = []
    for name in sorted(needed):
        version = installed[name].version if name in installed else None
        if name not in pins:
            problems.append(f'{name} {version} has no pin')
        # A local version such as torch's +cpu satisfies the pin.
        elif version is None or not pins[name].specifier.contains(version, True):
            problems.append(f'{pins[name]} is pinned, {version or "nothing"} installed')
    print(*problems, sep='\n', end='\n' * bool(problems), file=sys.stderr)
    print(
        f'mmseg_twins[{",".join(extras)}] needs {len(needed)} packages, '
        f'{len(problems)} of them not as pinned in {args.pins.name}'
    )
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
