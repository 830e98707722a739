"""Apply the patches in processes that do not import ``mmseg_twins`` themselves.

An installation has a copy of this module beside the package, ``mmseg_twins_hook``, and
a ``.pth`` file that makes Python call its :func:`install` at startup. From then on, an
import finder waits for two modules of other packages and acts once they are imported.

This module imports nothing from the package, and nothing that Python has not loaded at
startup, not even types for annotations. So it costs next to nothing, and does no harm
even if the package is broken or was removed.
"""

import os
import sys

SETTING = 'MMSEG_TWINS_COMPAT'
ONEDL_MMSEG = 'onedl-mmsegmentation'


def is_chosen(patch: str) -> bool:
    """Return whether the environment variable selects a patch."""
    names = (os.environ.get(SETTING) or '1').split(',')
    return '1' in names or patch in names


def name_mmsegmentation(config_utils) -> bool:
    """Tell mmengine the name of the installed distribution of mmsegmentation.

    ``_base_ = 'mmseg::...'`` looks for that distribution before the ``custom_imports``
    of a config are imported.

    Args:
        config_utils: the module ``mmengine.config.utils``.

    Returns:
        Whether the name is not mmengine's default.
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        version(ONEDL_MMSEG)
    except PackageNotFoundError:
        return False
    config_utils.MODULE2PACKAGE['mmseg'] = ONEDL_MMSEG
    return True


def after_config_utils(module) -> None:
    """Apply the patch ``configs`` if it is selected."""
    if is_chosen('configs'):
        name_mmsegmentation(module)


def after_mmseg(module) -> None:
    """Import the package, which applies all selected patches."""
    import mmseg_twins  # noqa: F401


def attempt(action, module) -> None:
    """Run an action; if it fails, the module works as without the package."""
    try:
        action(module)
    except Exception as error:
        errors = sys.modules.get('mmseg_twins.errors')
        if errors and isinstance(error, errors.SettingError):
            raise  # SETTING names a patch that does not exist
        import logging

        log = logging.getLogger('mmseg_twins.compat')
        log.debug('%s fails', action.__name__, exc_info=True)


def quiet_pkg_resources() -> None:
    """Hide the warnings that mim and mmengine cause whenever they import it.

    They need it, and the package requires a setuptools that has it.
    """
    import warnings

    warnings.filterwarnings('ignore', 'pkg_resources is deprecated')


class Finder:
    """A finder for ``sys.meta_path`` that runs actions after some imports."""

    def __init__(self) -> None:
        self.actions = {
            'mmengine.config.utils': after_config_utils,
            'mmseg': after_mmseg,
        }

    def find_spec(self, name: str, path=None, target=None):
        """Find a module through the other finders, and add its action."""
        if name == 'pkg_resources' and sys.modules.keys() & {'mim', 'mmengine'}:
            quiet_pkg_resources()
        action = self.actions.pop(name, None)  # the loop below also calls this finder
        if action is None:
            return None
        try:
            finders = [one for one in sys.meta_path if hasattr(one, 'find_spec')]
            found = (one.find_spec(name, path, target) for one in finders)
            spec = next(filter(None, found), None)
        finally:
            self.actions[name] = action
        if hasattr(spec and spec.loader, 'exec_module'):  # not a namespace package
            self.extend(spec.loader, name)
        return spec

    def extend(self, loader, name: str) -> None:
        """Make a loader run the module's action after the module."""
        execute = loader.exec_module

        def exec_module(module) -> None:
            execute(module)
            action = self.actions.pop(name, None)
            if action is not None:
                attempt(action, module)

        loader.exec_module = exec_module


def install() -> None:
    """Install the finder, unless the setting is ``0``; in a venv, this runs twice."""
    waits = any(isinstance(finder, Finder) for finder in sys.meta_path)
    if not waits and os.environ.get(SETTING) != '0':
        sys.meta_path.insert(0, Finder())
