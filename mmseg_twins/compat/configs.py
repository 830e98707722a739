"""Make configs inherit from ``mmseg::`` with onedl-mmsegmentation.

onedl-mmengine 0.10.12 looks for the distribution ``mmsegmentation``, as mmengine does.
"""

from __future__ import annotations

import logging

from mmengine.config import utils

from .hook import name_mmsegmentation

LOG = logging.getLogger(__package__)


def patch_inheritance() -> None:
    """Tell mmengine under which name mmsegmentation is installed."""
    if name_mmsegmentation(utils):
        LOG.debug('configs: mmseg:: is %s', utils.MODULE2PACKAGE['mmseg'])
