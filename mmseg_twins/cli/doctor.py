"""Diagnose an installation: ``python -m mmseg_twins``.

It must run even if parts of the package cannot be imported, so all that may be missing
or broken is imported inside functions.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from ..compat.versions import Problem, find_problem, version
from ..interrupts import ending
from ..version import __version__

PACKAGE = 'mmseg_twins'
OPENCV = ('opencv-python', 'opencv-python-headless', 'opencv-contrib-python')
# Modules that often cannot be imported in a broken installation, with the names of
# their distributions, and modules that need them.
BASES = {'numpy': ('numpy',), 'cv2': OPENCV, 'torch': ('torch',)}
BUILT_ON_BASES = ('mmengine', 'mmcv', 'mmseg_twins.compat', 'mmseg.models')
REINSTALL = 'pip install --upgrade --force-reinstall'


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if there are problems, else 0."""
    parser = argparse.ArgumentParser(
        prog='mmseg-twins doctor',
        description='Diagnose your installation: print versions and devices and, for '
        'each problem, the command that fixes it. Include the output in bug reports. '
        'The exit status is 1 if there are problems, else 0.',
    )
    parser.add_argument('--json', action='store_true', help='print JSON')
    args = parser.parse_args(argv)
    with warnings.catch_warnings(), ending():
        warnings.simplefilter('ignore')
        report, problems = describe(), find_problems()
    if args.json:
        found = [problem._asdict() for problem in problems]
        print(json.dumps({'report': report, 'problems': found}, indent=2))
        return bool(problems)
    print(*(f'{name}: {value}' for name, value in report.items()), '', sep='\n')
    for problem in problems:
        print(f'problem: {problem.says}')
        if problem.command:
            print(f'    run: {problem.command}')
    if not problems:
        print('no problems found')
    return bool(problems)


def describe() -> dict[str, str]:
    """List versions and devices."""
    names = {one.name for one in requirements(PACKAGE)} | {*OPENCV, 'torchvision'}
    versions = {name: version(name) for name in sorted(names)}
    report = {PACKAGE: f'{__version__} ({Path(__file__).parents[1]})'}
    report |= {name: found for name, found in versions.items() if found}
    try:
        from mmengine.utils.dl_utils import collect_env

        report |= {name: str(value).strip() for name, value in collect_env().items()}
    except (Exception, SystemExit) as error:
        report['environment'] = f'unknown ({one_line(error)})'
    return report


def find_problems() -> list[Problem]:
    """List the causes of problems or, if there is no known cause, the first symptom."""
    causes = [*check_requirements(), *check_torchvision()]
    if problem := find_problem():  # of mmengine, mmcv and mmsegmentation
        causes.append(problem)
    for module, distributions in BASES.items():
        name = next(filter(version, distributions), None)
        if name and (error := import_error(module)):
            fix = f'{REINSTALL} {name}'
            if 'libGL' in error:  # missing on machines without a display
                fix = f'pip uninstall -y {name} && pip install opencv-python-headless'
            causes.append(Problem(f'{module} cannot be imported: {error}', fix))
    return causes or [*check_use()][:1]


def check_requirements() -> Iterator[Problem]:
    """Compare the installed packages with the requirements of this one."""
    if version(PACKAGE) is None:
        yield Problem(f'{PACKAGE} is not installed', 'pip install .')
    for needed in requirements(PACKAGE):
        applies = needed.marker is None or needed.marker.evaluate({'extra': ''})
        if applies and (says := shortcoming(needed)):
            yield Problem(says, f'pip install {quoted(needed)}')


def check_torchvision() -> Iterator[Problem]:
    """Check that torchvision, which is optional, is built for the installed torch."""
    torch = version('torch')
    for needed in requirements('torchvision'):
        if torch and needed.name == 'torch' and shortcoming(needed):
            yield Problem(
                f'torchvision {version("torchvision")} requires {needed}, but torch '
                f'{torch} is installed',
                f'pip install torch=={Version(torch).public} torchvision',
            )


def check_use() -> Iterator[Problem]:
    """Import the modules that need the bases, and run a tiny Twins on each device."""
    disabled = os.environ.get('MMSEG_TWINS_COMPAT') == '0'
    for module in BUILT_ON_BASES:
        if error := import_error(module):
            fix = 'unset MMSEG_TWINS_COMPAT' if disabled else None
            yield Problem(f'{module} cannot be imported: {error}', fix)
            return
    import torch

    from ..models.backbones import SVT

    for device in ('cpu', *(f'cuda:{i}' for i in range(torch.cuda.device_count()))):
        try:
            model = SVT(
                arch='small', embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 3, 4)
            )
            with torch.inference_mode():
                model.to(device).eval()(torch.ones(1, 3, 64, 96, device=device))
        except Exception as error:
            fix = None if device == 'cpu' else f'{REINSTALL} torch'
            yield Problem(f'a model does not run on {device}: {one_line(error)}', fix)


def import_error(module: str) -> str | None:
    """Import a module; return the message of the error, if any."""
    try:
        imported = importlib.import_module(module)
        if module == 'mmseg_twins.compat':
            imported.activate()
    # Some packages exit if their checks fail.
    except (Exception, SystemExit) as error:
        return one_line(error)
    return None


def requirements(distribution: str) -> list[Requirement]:
    """Return a distribution's requirements, those of its extras included."""
    found = metadata.requires(distribution) if version(distribution) else None
    return [Requirement(text) for text in found or ()]


def shortcoming(needed: Requirement) -> str | None:
    """Return a sentence if a requirement is not met."""
    found = version(needed.name)
    if found is None:
        return f'{needed.name} is not installed'
    if needed.specifier.contains(found, prereleases=True):
        return None
    return f'{needed.name} {needed.specifier} is required, but {found} is installed'


def quoted(needed: Requirement) -> str:
    """Return a requirement quoted for a shell, without its marker."""
    return shlex.quote(f'{needed.name}{needed.specifier}')


def one_line(error: BaseException) -> str:
    """Return an error's message, shortened to one line."""
    return textwrap.shorten(str(error) or type(error).__name__, 200)
