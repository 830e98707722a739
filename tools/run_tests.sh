#!/usr/bin/env bash
# Sets up the environment and runs the tests, from whatever folder it is called.
#   bash tools/run_tests.sh [--all] [arguments of pytest]
# Tests marked `slow` run with --all only. Paths are relative to the project's folder.
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
exec "$python" -m pytest ${arguments[@]+"${arguments[@]}"}
