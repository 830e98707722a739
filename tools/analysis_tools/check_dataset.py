"""Check a dataset: `python tools/analysis_tools/check_dataset.py -h`."""

from __future__ import annotations

import sys

from mmseg_twins.cli.check_dataset import main
from mmseg_twins.interrupts import run

if __name__ == '__main__':
    sys.exit(run(main))
