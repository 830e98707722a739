"""Evaluate a segmentor: `python tools/test.py -h`."""

from __future__ import annotations

import sys

from mmseg_twins.cli.test import main
from mmseg_twins.interrupts import run

if __name__ == '__main__':
    sys.exit(run(main))
