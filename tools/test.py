"""Evaluate a segmentor: `python tools/test.py -h`."""

from __future__ import annotations

import sys

from mmseg_twins.cli.test import main

if __name__ == '__main__':
    sys.exit(main())
