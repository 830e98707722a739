"""Convert a Twins checkpoint: `python tools/model_converters/twins2mmseg.py -h`."""

from __future__ import annotations

import sys

from mmseg_twins.cli.convert import main
from mmseg_twins.interrupts import run

if __name__ == '__main__':
    sys.exit(run(main))
