#!/usr/bin/env bash
# Sets up the environment and runs the tests, two at a time.
#   bash tools/run_tests.sh [--all] [--stack onedl] [--active] [arguments of pytest]
# Tests marked `slow` run with --all only. --stack and --active select the environment as
# in tools/setup_env.sh. Paths are relative to the project's folder. `-n 0` runs one test
# at a time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

setup=() arguments=()
while [ $# -gt 0 ]; do
  case $1 in
    --all) arguments+=(-m '') ;; # overrides the `not slow` of pyproject.toml
    --active) setup+=(--active) ;;
    --stack)
      setup+=(--stack "${2:-}")
      shift $(($# > 1))
      ;;
    *) arguments+=("$1") ;;
  esac
  shift
done
python=$(bash tools/setup_env.sh --print-python ${setup[@]+"${setup[@]}"})
# Tests are too small for several threads.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$python" -m pytest -n 2 --dist worksteal ${arguments[@]+"${arguments[@]}"}
