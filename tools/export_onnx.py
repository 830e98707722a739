"""Export a segmentor: `python tools/export_onnx.py CONFIG CHECKPOINT OUT.onnx`."""

from __future__ import annotations

import sys

from mmseg_twins.cli.export import main

if __name__ == '__main__':
    sys.exit(main())
