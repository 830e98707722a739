"""Compare with mmsegmentation's built-in Twins: `python tools/analysis_tools/benchmark.py -h`."""

from __future__ import annotations

import sys

from benchmarking.cli import main

if __name__ == '__main__':
    sys.exit(main())
