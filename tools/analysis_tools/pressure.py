"""Memory at any image size and in training: `python tools/analysis_tools/pressure.py -h`."""

from __future__ import annotations

import sys

from pressuring.cli import main

if __name__ == '__main__':
    sys.exit(main())
