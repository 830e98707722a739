"""Let mmengine and mmcv look for compiled ops on Python 3.14.

mmengine 0.10.7, whenever a training starts, and mmcv call ``pkgutil.find_loader``,
which is gone from Python 3.14, and compare what it returns with None.
"""

from __future__ import annotations

import importlib.util
import logging
import pkgutil

LOG = logging.getLogger(__package__)


def add_to_pkgutil() -> None:
    """Add ``pkgutil.find_loader``, if Python does not have it."""
    if not hasattr(pkgutil, 'find_loader'):
        pkgutil.find_loader = importlib.util.find_spec  # type: ignore[assignment]
        LOG.debug('find_loader: added to pkgutil')
