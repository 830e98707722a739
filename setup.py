"""Build and install mmseg_twins.

Beside the package itself, mim (openmim 0.3.9) and mmengine look for the configs,
the scripts and the model index of an installed package in its folder ``.mim``.
Where they look for that folder decides two things here:

* A wheel carries copies under ``mmseg_twins/.mim``. They are copied into the build
  folder, never into the source tree.
* An editable install gets links in ``mmseg_twins/.mim`` of the source tree (git
  ignores them), so that an edited config is found as it stands. Its metadata also
  names the source folder in ``top_level.txt``: see ``EditableWheel``.

Both also carry ``compat/hook.py`` as a module of its own and a ``.pth`` file, which
Python runs when it starts.
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent
PACKAGE = 'mmseg_twins'
MIM_PARTS = ('configs', 'tools', 'model-index.yml')
# What works in a checkout only, and does not belong in a wheel.
CHECKOUT_ONLY = (
    'tools/*.sh',
    'tools/benchmark.py',
    'tools/check_dataset.py',
    'tools/check_versions.py',
    'tools/dataset_converters/street_scenes.py',
    'tools/demo/*',
)

HOOK = 'mmseg_twins_hook'

# Packages of different stacks have the same files and overwrite each other, so none may
# come along by itself: they are chosen with an extra.
STACKS = {
    extra: [f'{name}{versions}' for name, versions in stack.items()]
    for extra, stack in runpy.run_path(str(ROOT / PACKAGE / 'compat' / 'stacks.py'))[
        'STACKS'
    ].items()
}

# mmengine and mim import pkg_resources, which setuptools 82 no longer has: mmengine
# already when a config inherits from `mmseg::`. torch 2.13 needs 77.0.3.
SETUPTOOLS = 'setuptools>=77.0.3,<82'

# The tests have been run with the lower bounds: see requirements/oldest.txt.
INSTALL_REQUIRES = [
    'torch>=2.7',
    'filelock',
    'ftfy',  # mmsegmentation imports ftfy and regex without declaring them
    'huggingface_hub>=0.30',
    'matplotlib',
    'numpy',
    'packaging',
    'pillow',
    'regex',
    'rich',
    'safetensors',
    SETUPTOOLS,
]

EXTRAS_REQUIRE = {
    'lite': STACKS['lite'],
    'full': STACKS['full'],
    'onedl': [*STACKS['onedl'], 'onedl-mim>=0.5.1,<0.6'],
    # Other openxlab releases pin a setuptools that is too old for torch.
    'mim': ['openmim==0.3.9', 'openxlab==0.0.11', SETUPTOOLS],
    'deploy': ['onnx', 'onnxruntime', 'onnxscript'],
    'openvino': ['openvino'],
    'tiff': ['rasterio'],
    'docs': ['mkdocs-material', 'mkdocstrings[python]'],
    'test': ['codespell[toml]', 'hypothesis', 'mypy', 'pytest', 'pytest-xdist', 'ruff'],
}


def package_page() -> str:
    """Return the README without pictures and links that lead into the repository."""
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    text = re.sub(r'!\[[^]]*\]\((?!https:)[^)]*\)\n*', '', text)
    return re.sub(r'\[([^]]*)\]\((?!https:)[^)]*\)', r'\1', text)


def is_cache(name: str) -> bool:
    """Return whether tools leave such a file or folder, such as `.ruff_cache`."""
    return name.startswith('.') or name == '__pycache__'


def mim_files() -> list[Path]:
    """List the files that belong under ``.mim``, relative to the project's root.

    Raises:
        FileNotFoundError: If one of ``MIM_PARTS`` is not there.
    """
    files = []
    for part in MIM_PARTS:
        path = ROOT / part
        if not path.exists():
            raise FileNotFoundError(
                f'{path} is missing: a wheel carries {", ".join(MIM_PARTS)}, so build '
                'it from a complete source tree.'
            )
        found = [path] if path.is_file() else filter(Path.is_file, path.rglob('*'))
        files += [file.relative_to(ROOT) for file in found]
    return sorted(
        file
        for file in files
        if not any(map(is_cache, file.parts))
        and not any(file.match(pattern) for pattern in CHECKOUT_ONLY)
    )


def link_mim_parts() -> None:
    """Link ``MIM_PARTS`` into the source tree's ``.mim``, or copy without symlinks."""
    folder = ROOT / PACKAGE / '.mim'
    folder.mkdir(exist_ok=True)
    for part in MIM_PARTS:
        source, target = ROOT / part, folder / part
        if target.is_symlink() or target.is_file():
            target.unlink()
        elif target.is_dir():
            shutil.rmtree(target)
        try:
            target.symlink_to(os.path.relpath(source, folder), source.is_dir())
        except OSError:  # Windows without the right to make symlinks
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, target)


def write_hook(site: Path) -> None:
    """Write what Python runs when it starts into the root of a wheel."""
    shutil.copy2(ROOT / PACKAGE / 'compat' / 'hook.py', site / f'{HOOK}.py')
    (site / f'{HOOK}.pth').write_text(f'import {HOOK}; {HOOK}.install()\n')


class BuildPy(build_py):
    """Add the files under ``.mim``: copied into a wheel, linked by an editable one."""

    def run(self) -> None:
        """Build the package, what belongs under ``.mim``, and the hook."""
        built = Path(self.build_lib, PACKAGE)
        if not self.editable_mode and built.resolve() != ROOT / PACKAGE:
            # A wheel would carry what an earlier build left there.
            shutil.rmtree(built, ignore_errors=True)
        super().run()
        if self.editable_mode:
            link_mim_parts()
            # The root of the wheel, which has no modules of the package.
            write_hook(Path(self.get_finalized_command('install').install_lib))
            return
        write_hook(built.parent)
        for file in mim_files():
            target = built / '.mim' / file
            self.mkpath(str(target.parent))
            self.copy_file(str(ROOT / file), str(target))


class EditableWheel(editable_wheel):
    """Let mim and mmengine find the source tree of an editable install.

    Their ``get_installed_path`` joins the folder that holds the metadata
    (site-packages) with the package's name and, as no such folder is there, with the
    first line of ``top_level.txt``. An absolute path in that line wins the join.
    """

    def run(self) -> None:
        """Build the wheel, with the source folder in its ``top_level.txt``."""
        self._ensure_dist_info()
        top_level = Path(self.dist_info_dir, 'top_level.txt')
        top_level.write_text(f'{ROOT / PACKAGE}\n{PACKAGE}\n', encoding='utf-8')
        super().run()


setup(
    name=PACKAGE,
    version=runpy.run_path(str(ROOT / PACKAGE / 'version.py'))['__version__'],
    description=(
        'Twins backbones (PCPVT, SVT) for MMSegmentation 1.x: exact, fast, and able '
        'to load every Twins checkpoint.'
    ),
    long_description=package_page(),
    long_description_content_type='text/markdown',
    project_urls={
        'Paper': 'https://arxiv.org/abs/2104.13840',
        'MMSegmentation': 'https://github.com/open-mmlab/mmsegmentation',
    },
    license='Apache-2.0',
    keywords='semantic segmentation, vision transformer, Twins, mmsegmentation',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Operating System :: OS Independent',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    python_requires='>=3.10',
    packages=find_packages(include=[PACKAGE, f'{PACKAGE}.*']),
    include_package_data=False,
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={
        'console_scripts': [
            'mmseg-twins=mmseg_twins.cli.main:main',
            'twins2mmseg=mmseg_twins.cli.convert:main',
        ]
    },
    cmdclass={'build_py': BuildPy, 'editable_wheel': EditableWheel},
    zip_safe=False,
)
