"""Draw street scenes in ADE20K's folder layout: see ``tools/demo/scene_folder.py``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'demo'))
from scene_folder import main

from mmseg_twins.interrupts import run

if __name__ == '__main__':
    sys.exit(run(main))
