#!/usr/bin/env bash
# Sets up the Python environment of the project; `--help` says how.
#
# Another script gets the environment's Python, set up where need be, with
#     cd "$(dirname "${BASH_SOURCE[0]}")/.."
#     python=$(bash tools/setup_env.sh --print-python)
# under `set -e`, and then runs "$python" script.py or "$python" -m module.
set -euo pipefail

usage() {
  cat <<'HELP'
Usage: bash tools/setup_env.sh [--full] [--print-python]

Installs the project (editable, extras lite, mim, deploy and test) with the versions of
requirements/tested.txt into the virtual or conda environment that is active, or
else into .venv in the project, made with the first Python 3.10 to 3.13 among
python3, python3.13, python3.12, python3.11 and python3.10. Conda's base environment
is left alone. Where nothing has changed since the last time, it only says so.

Options:
  --full          build full mmcv with its compiled ops from source instead of
                  installing mmcv-lite; needs a C++ compiler and takes about twenty
                  minutes on two cores (with a CUDA toolkit, longer), the first time:
                  the wheel is kept in $XDG_CACHE_HOME/mmseg_twins (~/.cache) for
                  other environments with the same Python and torch. None of this
                  project's recipes needs the ops but Mask2Former's. An installed
                  full mmcv is always kept.
  --print-python  print the path of the environment's Python on standard output;
                  everything else goes to standard error
  --help          print this text

Where packages come from is pip's own setting: PIP_INDEX_URL, PIP_EXTRA_INDEX_URL,
PIP_FIND_LINKS or pip.conf. On Linux pip takes PyTorch's CUDA build, several GB. For
the smaller CPU build set PIP_EXTRA_INDEX_URL to the index that PyTorch's installation
page names for CPU, or install that torch into the active environment first: a torch
of the tested version stays as it is.
HELP
}

say() { printf '[setup] %s\n' "$*" >&2; }
fail() {
  printf '[setup] error: %s\n' "$*" >&2
  exit 1
}

full=no
print_python=no
for argument in "$@"; do
  case $argument in
    --full) full=yes ;;
    --print-python) print_python=yes ;;
    -h | --help)
      usage
      exit 0
      ;;
    *) fail "unknown option '$argument'; allowed are --full, --print-python and --help." ;;
  esac
done

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$root"
for name in setup.py pyproject.toml requirements/tested.txt; do
  [ -f "$name" ] || fail "$root/$name is missing: this script sets up a checkout of the project, so run it in one."
done

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

is_supported() {
  case $1 in
    3.10 | 3.11 | 3.12 | 3.13) true ;;
    *) false ;;
  esac
}

# Sets base_python to a Python that can make .venv and put pip into it.
find_base_python() {
  local name path version seen='' unable=''
  for name in python3 python3.13 python3.12 python3.11 python3.10; do
    path=$(command -v "$name") || continue
    version=$(version_of "$path") || continue
    seen="$seen, $name is $version"
    is_supported "$version" || continue
    if "$path" -c 'import venv' 2>/dev/null &&
      { "$path" -c 'import ensurepip' || "$path" -m pip --version; } >/dev/null 2>&1; then
      base_python=$path
      return
    fi
    unable="$version at $path"
  done
  [ -z "$unable" ] || fail "Python $unable lacks the module venv, or both ensurepip and pip (Debian and Ubuntu: apt install python3-venv)."
  fail "no Python 3.10 to 3.13 found among python3, python3.13, python3.12, python3.11 and python3.10${seen:+ (${seen#, })}: install one, or activate an environment that has one."
}

# Sets python to the environment's Python, and makes .venv where no environment is active.
find_environment() {
  if [ -n "${VIRTUAL_ENV:-}" ]; then
    environment=$VIRTUAL_ENV
  elif [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-}" != base ]; then
    environment=$CONDA_PREFIX
  else
    environment=$root/.venv
    if [ ! -e "$environment/bin/python" ]; then
      [ ! -L "$environment/bin/python" ] || fail "$environment/bin/python leads nowhere, its Python is gone: remove $environment and run this again."
      find_base_python
      say "Making $environment with Python $(version_of "$base_python") ($base_python)"
      "$base_python" -m venv --without-pip "$environment" >&2 || fail "could not make $environment."
    fi
  fi
  python=$environment/bin/python
  [ -x "$python" ] || fail "the active environment $environment holds no bin/python: deactivate it, or activate another."
  version=$(version_of "$python") || fail "$python does not start: remove $environment and make it anew."
  is_supported "$version" || fail "$environment has Python $version, but 3.10 to 3.13 is needed: activate another environment${VIRTUAL_ENV:+ or none}, or remove this one."
  [ -w "$environment" ] || fail "$environment is not writable: activate an environment of your own, or none."
}

ensure_pip() {
  "$python" -m pip --version >/dev/null 2>&1 && return
  say 'Installing pip'
  if "$python" -c 'import ensurepip' 2>/dev/null; then
    logged "$python" -m ensurepip --upgrade --default-pip
  elif [ "$environment" = "$root/.venv" ]; then # made by a Python whose ensurepip is a
    # package of its own (Debian): that Python's pip does it
    [ -n "${base_python:-}" ] || find_base_python
    site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    logged "$base_python" -m pip install --target "$site" pip
  else
    fail "$environment has neither pip nor ensurepip: install pip into it, or deactivate it."
  fi
}

# full, lite, none, or a state that nothing can be installed over: both, old
# (python -I: metadata that a build left in the project's folder is not looked at)
mmcv_state() {
  "$python" -I - <<'PY'
from importlib.metadata import PackageNotFoundError, version


def installed(name):
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


full, lite, old = map(installed, ('mmcv', 'mmcv-lite', 'mmcv-full'))
print(
    'old' if old else 'both' if full and lite else
    'full' if full else 'lite' if lite else 'none'
)
PY
}

# A hash of all that decides what the environment holds, or nothing where the project
# is not installed in it any more.
fingerprint() {
  [ -e mmseg_twins/.mim/model-index.yml ] || return 0
  "$python" -I - "$root" "$1" <<'PY'
import hashlib
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

root, extras = sys.argv[1:]
try:
    version('mmseg_twins')
except PackageNotFoundError:
    sys.exit()
digest = hashlib.sha256()
for text in (sys.version, sys.prefix, root, extras):
    digest.update(text.encode() + b'\0')
for name in (
    'setup.py', 'pyproject.toml', 'requirements/tested.txt', 'mmseg_twins/version.py'
):
    digest.update(Path(root, name).read_bytes() + b'\0')
print(digest.hexdigest())
PY
}

# Runs a command with its output in the log, saying now and then how far it is.
logged() {
  local status=0
  local steps='^ *(Collecting|Downloading|Processing|Building|Installing|Preparing|\$) '
  printf '\n$ %s\n' "$*" >>"$log"
  # The sleep holds none of this script's open files, as it may outlive the script.
  while sleep 15 >/dev/null 2>&1 9>&- && kill -0 $$ 2>/dev/null; do
    say "  ... $SECONDS s: $(grep -E "$steps" "$log" | tail -n 1 | cut -c 1-72)"
  done &
  beat=$!
  trap 'kill "$beat" 2>/dev/null || true' EXIT
  "$@" >>"$log" 2>&1 </dev/null || status=$?
  kill "$beat" 2>/dev/null || true
  wait "$beat" 2>/dev/null || true
  trap - EXIT
  [ "$status" -eq 0 ] && return
  tail -n 25 "$log" >&2
  fail "the last command failed (exit status $status); its whole output is in $log"
}

# What a wheel of mmcv fits: its ops are compiled against one Python and one torch, for
# CUDA too where there is a GPU, or where mmcv's setup.py is told so.
compiled_for() {
  "$python" -I - <<'PY'
import os
import sys

import torch

cuda = torch.cuda.is_available() or os.environ.get('FORCE_CUDA') == '1'
python = 'cp%d%d' % sys.version_info[:2]
print(f'{python}-torch{torch.__version__}-{"cuda" if cuda else "cpu"}')
PY
}

# Swaps mmcv-lite for full mmcv only when that has been built.
build_full_mmcv() {
  local pinned fits wheels building
  pinned=$(sed -n 's/^mmcv==\([^ ;]*\).*/\1/p' requirements/tested.txt)
  fits=$(compiled_for) || fail "torch does not load in $environment: remove the environment, or install torch into it anew."
  wheels=${XDG_CACHE_HOME:-$HOME/.cache}/mmseg_twins/$fits
  if compgen -G "$wheels/mmcv-$pinned-*.whl" >/dev/null; then
    say "Taking full mmcv from $wheels"
  else
    say 'Building full mmcv from source (about twenty minutes on two cores)'
    mkdir -p "$wheels"
    building=$(mktemp -d "$wheels/building.XXXXXX")
    # pip's own cache would give a wheel that was compiled against another torch.
    logged env MMCV_WITH_OPS=1 "$python" -m pip wheel --no-cache-dir --no-deps \
      --no-build-isolation --use-pep517 -c requirements/tested.txt -w "$building" mmcv
    mv "$building"/mmcv-*.whl "$wheels"
    rmdir "$building"
  fi
  [ "$mmcv" != lite ] || logged "$python" -m pip uninstall -y mmcv-lite
  logged "$python" -m pip install --no-index --no-deps "$wheels/mmcv-$pinned"-*.whl
}

finish() {
  [ "$print_python" = no ] || echo "$python"
  exit 0
}

# Two set-ups at a time wait for each other; the lock ends with the process.
if command -v flock >/dev/null 2>&1 && exec 9<setup.py; then
  flock -n 9 || {
    say 'Waiting for another set-up of this project'
    flock 9
  }
fi

find_environment
log=$environment/mmseg_twins-setup.log
stamp=$environment/mmseg_twins-setup.stamp

mmcv=$(mmcv_state)
case $mmcv in
  old) fail "$environment holds mmcv-full, of mmsegmentation 0.x, whose files mmcv's would overwrite: activate another environment, or none." ;;
  both) fail "$environment holds both mmcv and mmcv-lite, which overwrite each other: run '$python -m pip uninstall -y mmcv mmcv-lite', then this again." ;;
esac
extras=lite,mim,deploy,test
if [ "$mmcv" = full ] || [ "$full" = yes ]; then
  extras=mim,deploy,test
fi

current=$(fingerprint "$extras")
if [ -n "$current" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$current" ]; then
  say "Ready, nothing has changed: $environment"
  finish
fi

rm -f "$stamp"
: >"$log"
say "Setting up $environment (Python $version); output of pip: $log"
ensure_pip
[ "$mmcv" != full ] || say 'Full mmcv is installed: leaving mmcv-lite out, whose files would overwrite it'
say "Installing mmseg_twins[$extras] with the versions of requirements/tested.txt"
logged "$python" -m pip install --disable-pip-version-check --progress-bar off \
  -c requirements/tested.txt -e ".[$extras]"
if [ "$full" = yes ] && [ "$mmcv" != full ]; then
  build_full_mmcv
fi

say 'Checking the installation'
"$python" -c 'import cv2' >>"$log" 2>&1 || {
  tail -n 1 "$log" >&2
  fail "OpenCV does not load: on a bare Linux machine it needs libGL and GLib (Debian, Ubuntu: apt install libgl1 libglib2.0-0; Fedora: dnf install mesa-libGL glib2)."
}
conflicts=$("$python" -m pip check 2>&1) || {
  printf '%s\n' "$conflicts" >&2
  fail "the packages in $environment do not fit together (see above): mend that, or use an environment of its own."
}

fingerprint "$extras" >"$stamp"
say "Done in $SECONDS s: $environment"
[ -n "${VIRTUAL_ENV:-}" ] || [ "$environment" != "$root/.venv" ] || say "To use it in your shell: source $environment/bin/activate"
finish
