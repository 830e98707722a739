"""Export a segmentor: `python tools/export_onnx.py CONFIG CHECKPOINT OUT.onnx`."""

from __future__ import annotations

import sys

from mmseg_twins.cli.export import main
from mmseg_twins.interrupts import run

if __name__ == '__main__':
    sys.exit(run(main))
