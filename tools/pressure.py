"""Memory at any image size and in training: `python tools/pressure.py -h`."""

from __future__ import annotations

import sys

from mmseg_twins.pressure.cli import main

if __name__ == '__main__':
    sys.exit(main())
