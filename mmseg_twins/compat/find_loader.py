"""Make mmengine and mmcv find compiled ops on Python 3.14.

mmengine 0.10.7, whenever a training starts, and mmcv call ``pkgutil.find_loader``,
which Python 3.14 has removed, and compare the result with None.
"""

from __future__ import annotations

import importlib.util
import logging
import pkgutil

LOG = logging.getLogger(__package__)


def add_to_pkgutil() -> None:
    """Add ``pkgutil.find_loader`` if Python does not have it."""
    if not hasattr(pkgutil, 'find_loader'):
        pkgutil.find_loader = importlib.util.find_spec  # type: ignore[assignment]
        LOG.debug('find_loader: added to pkgutil')
