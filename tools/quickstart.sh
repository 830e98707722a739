#!/usr/bin/env bash
# Sets up the environment, trains a small Twins on scenes that it makes, and shows how
# well it does: pictures and a table, everything under work_dirs/quickstart.
#   bash tools/quickstart.sh [--help]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(bash tools/setup_env.sh --print-python)
exec "$python" tools/demo/quickstart.py "$@"
