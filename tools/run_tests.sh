#!/usr/bin/env bash
# Sets up the environment and runs the tests, two at a time, from whatever folder.
#   bash tools/run_tests.sh [--all] [arguments of pytest]
# Tests marked `slow` run with --all only. Paths are relative to the project's folder.
# `-n 0` runs one test at a time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(bash tools/setup_env.sh --print-python)

arguments=()
for argument in "$@"; do
  case $argument in
    --all) arguments+=(-m '') ;; # overrides the `not slow` of pyproject.toml
    *) arguments+=("$argument") ;;
  esac
done
# Tests are too small to share between the threads of one process as well.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$python" -m pytest -n 2 --dist worksteal ${arguments[@]+"${arguments[@]}"}
