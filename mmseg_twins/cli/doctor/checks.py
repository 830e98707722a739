"""What may be wrong with a machine: facts about it, and checks that judge them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from packaging.requirements import Requirement
from packaging.version import Version

#: What everything stands on: an import of these that fails is a cause by itself.
BASES = ('numpy', 'cv2', 'torch', 'torchvision')
#: What stands on them: if these fail and a cause is known, that is the reason.
BUILT_ON_THEM = ('mmengine', 'mmcv', 'mmseg_twins.compat', 'mmseg.models')

MMCV = 'mmcv-lite>=2.1.0,<2.2.0'
#: What has to be installed in which version, as setup.py demands it, and why.
REQUIREMENTS = {
    'torch>=2.7': 'the package is made for it and for later ones',
    'mmengine>=0.10.4,<1': 'mmsegmentation 1.x runs on it',
    'mmsegmentation>=1.2.2,<2': 'the package is a plugin for its 1.x',
    'ftfy': 'mmsegmentation imports it without asking for it',
    'regex': 'mmsegmentation imports it without asking for it',
    'setuptools>=77.0.3,<82': 'mmengine and mim import pkg_resources from it, which '
    'setuptools 82 no longer has',
    'safetensors': 'checkpoints may be such files',
    'matplotlib': 'mmengine draws with it',
    'numpy': 'everything here needs it',
    'packaging': 'versions are compared with it',
    'pillow': 'images are read and written with it',
    'rich': 'progress is shown with it',
}


@dataclass(frozen=True)
class Problem:
    """Something that does not work.

    Attributes:
        says: One sentence.
        command: What mends it; None where nothing general does.
    """

    says: str
    command: str | None = None


@dataclass(frozen=True)
class Facts:
    """What :data:`CHECKS` judge.

    Attributes:
        versions: Of what is installed, by the names in ``DISTRIBUTIONS``.
        errors: What importing a module of ``BASES`` and ``BUILT_ON_THEM`` raises;
            those that can be imported are not in it.
        torchvision_needs: The torch that the installed torchvision asks for, such as
            ``'torch==2.13.0'``.
        forward: Devices by name, with what a forward pass of a tiny Twins raises
            there, or None where it gives finite numbers.
        compat_off: Whether ``MMSEG_TWINS_COMPAT`` switches compat off.
    """

    versions: Mapping[str, str]
    errors: Mapping[str, str] = field(default_factory=dict)
    torchvision_needs: str | None = None
    forward: Mapping[str, str | None] = field(default_factory=dict)
    compat_off: bool = False

    def satisfy(self, requirement: str) -> bool:
        """Whether a version is installed that meets a requirement."""
        wanted = Requirement(requirement)
        found = self.versions.get(wanted.name)
        return found is not None and wanted.specifier.contains(found, prereleases=True)


def check_requirements(facts: Facts) -> Iterator[Problem]:
    """What the package needs is there, in a version that works."""
    for requirement, reason in REQUIREMENTS.items():
        if not facts.satisfy(requirement):
            name = Requirement(requirement).name
            found = facts.versions.get(name)
            state = f'{name} {found} is installed' if found else f'{name} is missing'
            yield Problem(
                f'{state}, and {requirement} is needed: {reason}',
                f'pip install {_quoted(requirement)}',
            )


def check_mmcv(facts: Facts) -> Iterator[Problem]:
    """There is one mmcv, of a version that mmsegmentation takes."""
    found = [name for name in ('mmcv', 'mmcv-lite') if name in facts.versions]
    install = f'pip install {_quoted(MMCV)}'
    if not found:
        yield Problem(
            'mmcv is missing: neither mmcv nor mmcv-lite is installed', install
        )
    elif len(found) == 2:
        yield Problem(
            'mmcv and mmcv-lite are both installed, and have overwritten files of each '
            'other',
            f'pip uninstall -y mmcv mmcv-lite && {install}',
        )
    elif not Requirement(MMCV).specifier.contains(
        facts.versions[found[0]], prereleases=True
    ):
        yield Problem(
            f'{found[0]} {facts.versions[found[0]]} does not work: mmsegmentation '
            '1.2.2 and this package need 2.1.0 or later, below 2.2.0',
            f'pip uninstall -y {found[0]} && {install}',
        )


def check_mim(facts: Facts) -> Iterator[Problem]:
    """The openxlab that mim brings along leaves setuptools alone."""
    found = facts.versions.get('openxlab')
    if 'openmim' in facts.versions and found not in (None, '0.0.11'):
        yield Problem(
            f'openxlab {found} came with mim and pins a setuptools that is too old for '
            'torch',
            "pip install openxlab==0.0.11 'setuptools>=77.0.3,<82'",
        )


def check_torchvision(facts: Facts) -> Iterator[Problem]:
    """A torchvision, which need not be there, is made for the installed torch."""
    needs, torch = facts.torchvision_needs, facts.versions.get('torch')
    if needs is None or torch is None or facts.satisfy(needs):
        return
    found = f'torchvision {facts.versions.get("torchvision")}'
    version = Version(torch)
    # torchvision's 0.15 was made for torch 2.0, and both count on since.
    fitting = f"pip install 'torchvision==0.{version.minor + 15}.*'"
    yield Problem(
        f'{found} needs {needs}, and torch {torch} is installed',
        fitting if version.major == 2 else 'pip uninstall -y torchvision',
    )


def check_imports(facts: Facts) -> Iterator[Problem]:
    """numpy, OpenCV and torch can be imported."""
    for module in BASES:
        error = facts.errors.get(module)
        # That torch is missing, or torchvision of another one, is said by others.
        if error is None or (module == 'torchvision' and any(check_torchvision(facts))):
            continue
        name = next(
            (name for name in facts.versions if name.startswith('opencv')),
            'opencv-python',
        )
        name = name if module == 'cv2' else module
        if module != 'cv2' and name not in facts.versions:
            continue
        command = f'pip install --force-reinstall {name}'
        if 'libGL' in error:  # a machine without a display
            command = f'pip uninstall -y {name} && pip install opencv-python-headless'
        elif module == 'cv2' and 'numpy' in error.lower():
            command = f'pip install --upgrade --force-reinstall numpy {name}'
        yield Problem(f'{module} cannot be imported: {error}', command)


CHECKS: tuple[Callable[[Facts], Iterator[Problem]], ...] = (
    check_requirements,
    check_mmcv,
    check_mim,
    check_torchvision,
    check_imports,
)


def check_use(facts: Facts) -> Iterator[Problem]:
    """The package can be imported, and computes on every device."""
    for module in BUILT_ON_THEM:
        if module in facts.errors:
            yield Problem(
                f'{module} cannot be imported: {facts.errors[module]}',
                'unset MMSEG_TWINS_COMPAT' if facts.compat_off else None,
            )
            return
    for device, error in facts.forward.items():
        if error is not None:
            reinstall = 'pip install --upgrade --force-reinstall torch'
            yield Problem(
                f'a forward pass of a tiny Twins fails on {device}: {error}',
                reinstall if device.startswith('cuda') else None,
            )


def find_problems(facts: Facts) -> list[Problem]:
    """Judges facts: the causes, or where none is known, what does not work."""
    causes = [problem for check in CHECKS for problem in check(facts)]
    return causes or list(check_use(facts))


def _quoted(requirement: str) -> str:
    return f"'{requirement}'" if any(c in requirement for c in '<>') else requirement
