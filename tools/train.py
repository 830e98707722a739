"""Train a segmentor: `python tools/train.py -h`."""

from __future__ import annotations

import sys

from mmseg_twins.cli.train import main

if __name__ == '__main__':
    sys.exit(main())
