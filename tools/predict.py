"""Predict images: `python tools/predict.py -h`."""

from __future__ import annotations

import sys

from mmseg_twins.cli.predict import main
from mmseg_twins.interrupts import run

if __name__ == '__main__':
    sys.exit(run(main))
