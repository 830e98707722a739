#!/usr/bin/env bash
# Installs the project as users do, and tests the installation; see `--help`.
set -euo pipefail

usage() {
  cat <<'HELP'
Usage: bash tools/check_wheel.sh [--python PYTHON]

Builds the wheel, installs it with the extras lite and mim and the versions of
requirements/tested.txt in a fresh virtual environment, and uses it outside the
checkout: imports it, diagnoses the installation, predicts an image with a segmentor by
name, finds the configs with mim, writes a config, prints one with mmsegmentation's own
script, and uninstalls the package. Everything happens in a temporary folder ($TMPDIR,
about 2 GB), which is removed at the end. Takes a few minutes; exits with status 1 if
anything fails.

Options:
  --python PYTHON  the Python for the environment, 3.10 to 3.13 (default: that of the
                   project's environment, else python3)
  --help           print this text

pip's settings determine the source of packages, as for tools/setup_env.sh.
HELP
}

say() { printf '[wheel] %s\n' "$*" >&2; }
fail() {
  printf '[wheel] error: %s\n' "$*" >&2
  exit 1
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
base=
while [ $# -gt 0 ]; do
  case $1 in
    --python)
      [ $# -gt 1 ] || fail '--python needs the path of a Python.'
      base=$2
      shift 2
      ;;
    -h | --help)
      usage
      exit 0
      ;;
    *) fail "unknown option '$1'; allowed are --python and --help." ;;
  esac
done
if [ -z "$base" ]; then
  base=python3
  [ ! -x "$root/.venv/bin/python" ] || base=$root/.venv/bin/python
fi
"$base" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null ||
  fail "$base is not Python 3.10 to 3.13; give one with --python."

work=$(mktemp -d "${TMPDIR:-/tmp}/mmseg_twins-wheel.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
log=$work/log

# Runs a command with its output in the log, whose end is shown if it fails.
logged() {
  printf '\n$ %s\n' "$*" >>"$log"
  "$@" >>"$log" 2>&1 </dev/null && return
  tail -n 25 "$log" >&2
  fail "this failed: $*"
}

# Nothing in the checkout or in an active environment may be used by accident.
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV CONDA_PREFIX
export PYTHONNOUSERSITE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

say "Making an environment with $("$base" --version)"
if "$base" -c 'import ensurepip' 2>/dev/null; then
  logged "$base" -m venv "$work/env"
  python=$work/env/bin/python
else # Debian's Python without python3-venv, but with pip
  logged "$base" -m venv --without-pip "$work/env"
  python=$work/env/bin/python
  site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  logged "$base" -m pip install --target "$site" pip
fi

say 'Building the wheel'
mkdir "$work/source" "$work/dist"
# From a copy, so that the build leaves nothing in the checkout.
tar -C "$root" -c --exclude='.?*' --exclude='*.egg-info' --exclude=build \
  --exclude=work_dirs --exclude=__pycache__ \
  setup.py pyproject.toml MANIFEST.in README.md LICENSE CHANGELOG.md model-index.yml \
  mmseg_twins configs tools requirements | tar -C "$work/source" -x
logged "$python" -m pip wheel --no-deps -w "$work/dist" "$work/source"
wheel=$(echo "$work"/dist/mmseg_twins-*.whl)
[ -f "$wheel" ] || fail 'the build made no wheel.'
rm -r "$work/source"
logged "$python" -m pip install --target "$work/twine" twine
PYTHONPATH=$work/twine logged "$python" -m twine check --strict "$wheel"

say "Installing $(basename "$wheel")[lite,mim]"
logged "$python" -m pip install --progress-bar off -c "$root/requirements/tested.txt" \
  "$wheel[lite,mim]"
logged "$python" -m pip check

say 'Using it outside the checkout'
mkdir "$work/empty"
cd "$work/empty"
cat >smoke.py <<'PY'
import sys
from pathlib import Path

import mmseg_twins
import torch
from mim.commands.search import get_model_info
from mim.utils import get_installed_path
from mmengine.config import Config
from mmseg.registry import MODELS
from mmseg_twins.apis import load_model
from PIL import Image

home = Path(mmseg_twins.__file__).resolve().parent
assert home.is_relative_to(Path(sys.prefix).resolve()), home

models = get_model_info('mmseg_twins', to_dict=True)
folder = Path(get_installed_path('mmseg_twins'))
assert folder.resolve() == home, folder
assert models
for model in models.values():
    assert (folder / '.mim' / model['config']).is_file(), model['config']

# What the name stands for, with random weights.
name = 'twins_svt-s_uperhead_8x2_512x512_130e_ade20k.py'
cfg = Config.fromfile(folder / '.mim/configs' / name)
cfg.model.backbone.init_cfg = None
torch.save(MODELS.build(cfg.model).state_dict(), 'upernet-svt-s-ade20k.pth')
Image.new('RGB', (64, 48)).save('photo.jpg')

model = load_model('upernet-svt-s-ade20k')
labels = model.predict('photo.jpg').labels
assert labels.shape == (48, 64) and len(model.classes) == 150
print(f'{len(models)} configs; {model.classes[labels[0, 0]]}')
PY
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
MMSEG_TWINS_WEIGHTS=. TORCH_HOME=$work/torch logged "$python" smoke.py
logged "$work/env/bin/mmseg-twins"
logged "$work/env/bin/mmseg-twins" weights
logged "$work/env/bin/mmseg-twins" new my_config.py
logged "$work/env/bin/twins2mmseg" --help
logged "$work/env/bin/mim" search mmseg_twins --field config
# A script that imports mmsegmentation first works too.
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
config=$(echo "$site"/mmseg_twins/.mim/configs/twins_svt-s_uperhead_8x2_512x512_160k_*.py)
logged "$work/env/bin/mim" run mmsegmentation print_config "$config"
(cd "$root" && "$python" -I tools/check_versions.py --extras lite,mim) >>"$log" 2>&1 || {
  tail -n 25 "$log" >&2
  fail 'the installed versions are not those of requirements/tested.txt.'
}
logged "$python" -m pip uninstall -y mmseg_twins
left=$(find "$site" -iname '*mmseg_twins*' -not -path '*/__pycache__*')
[ -z "$left" ] || fail "pip uninstall leaves $left"

say "Done in $SECONDS s: $(basename "$wheel") installs and works"
