"""Find out what is wrong with a dataset: `python tools/analysis_tools/check_dataset.py -h`."""

from __future__ import annotations

import sys

from dataset_check.cli import main

if __name__ == '__main__':
    sys.exit(main())
