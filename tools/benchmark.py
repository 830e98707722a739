"""Deprecated: use tools/analysis_tools/benchmark.py."""

import runpy
import sys
from pathlib import Path

NEW = Path(__file__).resolve().parent / 'analysis_tools' / Path(__file__).name

if __name__ == '__main__':
    sys.stderr.write('tools/benchmark.py has moved to tools/analysis_tools\n')
    sys.path[0] = str(NEW.parent)
    runpy.run_path(str(NEW), run_name='__main__')
