"""Compare what is installed with requirements/tested.txt: every package, by name.

What the project needs is worked out from the metadata of the installed packages,
from mmseg_twins and its extras on: each of them has to be pinned, and to be installed
in the version of its pin. pip, which comes with Python, and packages that nothing of
this asks for are named and do not fail the check. Exits with status 1 if something
differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

PROJECT = 'mmseg-twins'
PINS = Path(__file__).resolve().parents[1] / 'requirements' / 'tested.txt'
UNPINNED = 'pip'  # openmim asks for it, and an environment has it before anything else
EXTRAS = 'mim,deploy,test'  # and the extra of the mmcv that is installed


def read_pins(path: Path) -> dict[str, Requirement]:
    """Reads the pins for this Python and platform.

    Args:
        path: A file of constraints, ``NAME==VERSION ; MARKER`` each.

    Returns:
        Pins by canonical name.

    Raises:
        ValueError: A line is none, or a package has two pins.
    """
    pins: dict[str, Requirement] = {}
    for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
        text = line.partition('#')[0].strip()
        if not text:
            continue
        try:
            pin = Requirement(text)
        except InvalidRequirement as error:
            raise ValueError(f'{path}:{number}: {text!r} is no pin: {error}') from None
        if [clause.operator for clause in pin.specifier] != ['==']:
            raise ValueError(f'{path}:{number}: {text!r} is no NAME==VERSION')
        if pin.marker is not None and not pin.marker.evaluate():
            continue
        name = canonicalize_name(pin.name)
        if name in pins:
            raise ValueError(f'{path}:{number}: {name} has two pins for this Python')
        pins[name] = pin
    return pins


def installed_packages() -> dict[str, Distribution]:
    """The installed packages by canonical name."""
    found: dict[str, Distribution] = {}
    for distribution in distributions():
        # The first one on the path is the one that is imported.
        found.setdefault(canonicalize_name(distribution.name), distribution)
    return found


def closure(
    name: str, extras: Iterable[str], installed: Mapping[str, Distribution]
) -> dict[str, str]:
    """Everything that a package asks for, directly or not.

    Args:
        name: The package's canonical name.
        extras: Those of its extras that count.
        installed: Installed packages, whose metadata is read.

    Returns:
        For each package, itself left out, the one that asks for it first. Packages
        that are not installed are in it, but not what they would ask for.
    """
    askers: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(name, extra) for extra in ('', *extras)]
    while waiting:
        owner, extra = waiting.pop(0)
        if (owner, extra) in seen or owner not in installed:
            continue
        seen.add((owner, extra))
        for text in installed[owner].requires or ():
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is not None and not marker.evaluate({'extra': extra}):
                continue
            wanted = canonicalize_name(requirement.name)
            if wanted != name:
                askers.setdefault(wanted, owner)
            waiting += [(wanted, inner) for inner in ('', *requirement.extras)]
    return askers


def compare(
    askers: Mapping[str, str],
    pins: Mapping[str, Requirement],
    versions: Mapping[str, str],
) -> list[str]:
    """Lists what differs from the pins, a sentence each.

    Args:
        askers: What is needed, as :func:`closure` gives it.
        pins: Pins by name.
        versions: Installed versions by name.
    """
    problems = []
    for name, asker in sorted(askers.items()):
        if name not in versions:
            problems.append(f'{name} is not installed, and {asker} asks for it')
        elif name not in pins:
            problems.append(
                f'{name} has no pin, and {asker} asks for it: {versions[name]} is '
                'installed'
            )
        # A local version, such as torch's +cpu, is one of the pinned version.
        elif not pins[name].specifier.contains(versions[name], prereleases=True):
            problems.append(
                f'{name} is installed in version {versions[name]}, pinned is '
                f'{str(pins[name].specifier).removeprefix("==")}'
            )
    return problems


def main(argv: list[str] | None = None) -> int:
    """Compares and prints; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--extras',
        help='extras of mmseg_twins that count, comma-separated (default: '
        f'{EXTRAS} and lite, or full where mmcv is installed)',
    )
    parser.add_argument(
        '--pins',
        type=Path,
        default=PINS,
        help='the file of pins (default: %(default)s)',
    )
    args = parser.parse_args(argv)
    installed = installed_packages()
    if PROJECT not in installed:
        parser.exit(2, f'{parser.prog}: error: mmseg_twins is not installed here\n')
    try:
        pins = read_pins(args.pins)
    except (OSError, ValueError) as error:
        parser.exit(2, f'{parser.prog}: error: {error}\n')
    mmcv = 'full' if 'mmcv' in installed else 'lite'
    extras = (args.extras or f'{mmcv},{EXTRAS}').split(',')
    known = installed[PROJECT].metadata.get_all('Provides-Extra') or []
    for extra in extras:
        if extra not in known:
            parser.exit(
                2,
                f'{parser.prog}: error: --extras: mmseg_twins has no extra {extra!r}; '
                f'it has {", ".join(known)}\n',
            )
    askers = closure(PROJECT, extras, installed)
    askers.pop(UNPINNED, None)
    versions = {name: package.version for name, package in installed.items()}
    problems = compare(askers, pins, versions)
    for problem in problems:
        print(problem, file=sys.stderr)
    others = [
        f'{name} {versions[name]}'
        for name in sorted(versions.keys() - askers.keys() - {PROJECT})
    ]
    if others:
        print(f'installed beside them: {", ".join(others)}')
    print(
        f'mmseg_twins[{",".join(extras)}] needs {len(askers)} packages; '
        + (f'{len(problems)} differ from' if problems else 'all are as in')
        + f' {args.pins.name}'
    )
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
