#!/usr/bin/env bash
# Sets up the environment and runs tools/demo/quickstart.py in it.
set -euo pipefail

usage() {
  cat <<'HELP'
Usage: bash tools/quickstart.sh [OPTION]...

Sets up an environment if need be, draws street scenes, trains a small Twins on them, and
evaluates it on held-out scenes: an image of predictions, and a report,
report/index.html. Takes a few minutes on two CPU cores. The results of an earlier run are
moved to a subfolder.

Options:
  --work-dir FOLDER  folder of the results (default: work_dirs/quickstart)
  --training N       number of training scenes (default: 240)
  --validation N     number of held-out scenes (default: 48)
  --seed SEED        equal seeds give equal scenes (default: 0)
  --max-iters N      training iterations (default: the config's)
  --active           use the active environment, as with `setup_env.sh --active`
  --help             print this text
HELP
}

setup=() arguments=()
for argument in "$@"; do
  case $argument in
    -h | --help)
      usage
      exit
      ;;
    --active) setup+=(--active) ;;
    *) arguments+=("$argument") ;;
  esac
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(bash tools/setup_env.sh --print-python ${setup[@]+"${setup[@]}"})
exec "$python" tools/demo/quickstart.py ${arguments[@]+"${arguments[@]}"}
