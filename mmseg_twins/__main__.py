"""``python -m mmseg_twins``: see :mod:`mmseg_twins.cli.main`."""

from __future__ import annotations

import sys

try:
    from .cli.main import main
except ImportError as error:
    sys.exit(f'mmseg_twins: {error}; run: pip install packaging')

if __name__ == '__main__':
    sys.exit(main())
