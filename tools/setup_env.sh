#!/usr/bin/env bash
# Sets up the Python environment of the project; see `--help`.
#
# Other scripts get the environment's Python, set up if need be, with
#     cd "$(dirname "${BASH_SOURCE[0]}")/.."
#     python=$(bash tools/setup_env.sh --print-python)
# under `set -e`, and then run "$python" script.py or "$python" -m module.
set -euo pipefail

usage() {
  cat <<'HELP'
Usage: bash tools/setup_env.sh [--stack onedl] [--full] [--active [--yes]] [--print-python]

Installs the project (editable, with the extras for its tests) in its folder .venv, with
the versions of requirements/tested.txt. Creates .venv with the first Python 3.10 to 3.13
among python3, python3.13, python3.12, python3.11 and python3.10. An active environment
is not changed. Returns at once if nothing has changed since the last time.

Options:
  --stack onedl   install the onedl fork of mmengine, mmcv and mmsegmentation instead,
                  into .venv-onedl, with the versions of requirements/tested-onedl.txt
  --full          build full mmcv with its compiled ops from source instead of
                  installing mmcv-lite; needs a C++ compiler and about twenty minutes
                  on two cores, longer with a CUDA toolkit. Only the Mask2Former config
                  needs the ops. An installed full mmcv is always kept.
  --active        install into the active virtual or conda environment (not conda's
                  base) and keep its packages: only those in versions that the project
                  does not support are replaced, and only with --yes (setuptools without
                  it, unless another package needs its version)
  --yes           with --active: replace those packages
  --print-python  print the path of the environment's Python on standard output;
                  everything else goes to standard error
  --help          print this text

pip's settings determine the source of packages: PIP_INDEX_URL, PIP_EXTRA_INDEX_URL,
PIP_FIND_LINKS or pip.conf. On Linux, pip installs PyTorch's CUDA build of several GB.
For the smaller CPU build, set PIP_EXTRA_INDEX_URL to the index for CPU on PyTorch's
installation page, or install PyTorch in your own environment first and use --active.
HELP
}

say() { printf '[setup] %s\n' "$*" >&2; }
fail() {
  say "error: $*"
  exit 1
}

stack=openmmlab full='' active='' yes='' print_python=''
while [ $# -gt 0 ]; do
  case $1 in
    --stack)
      [ "${2:-}" = onedl ] || [ "${2:-}" = openmmlab ] ||
        fail "unknown stack '${2:-}'; allowed are openmmlab (the default) and onedl."
      stack=$2
      shift
      ;;
    --full) full=yes ;;
    --active) active=yes ;;
    --yes) yes=yes ;;
    --print-python) print_python=yes ;;
    -h | --help)
      usage
      exit 0
      ;;
    *) fail "unknown option '$1'; allowed are --stack, --full, --active, --yes, --print-python and --help." ;;
  esac
  shift
done

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$root"
environment=$root/.venv
remedy='remove it'
pins=requirements/tested.txt
extras=lite,mim,deploy,tiff,test
other_stack='mmcv-full onedl-mim onedl-mmcv onedl-mmengine onedl-mmsegmentation'
if [ "$stack" = onedl ]; then
  [ -z "$full" ] || fail '--full builds mmcv of the default stack: leave out --full or --stack onedl.'
  environment=$root/.venv-onedl
  pins=requirements/tested-onedl.txt
  extras=onedl,deploy,tiff,test
  other_stack='mmcv-full mmcv mmcv-lite mmengine mmsegmentation openmim'
fi

make_environment() {
  local name version seen=''
  for name in python3 python3.13 python3.12 python3.11 python3.10; do
    version=$("$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    seen="$seen, $name is $version"
    [[ $version == 3.1[0-3] ]] || continue
    if "$name" -c 'import ensurepip, venv' 2>/dev/null; then
      say "Making $environment with Python $version"
      "$name" -m venv "$environment" >&2 || fail "could not make $environment."
      return
    fi
    seen="$seen without ensurepip or venv (Debian, Ubuntu: apt install python3-venv)"
  done
  fail "found no Python 3.10 to 3.13 that can make an environment${seen:+ (${seen#, })}: install one, or activate an environment that has one and add --active."
}

if [ "$active" ]; then
  environment=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
  remedy='activate another environment'
  [ "$environment" ] || fail 'no environment is active: activate one, or leave out --active.'
  [ "${VIRTUAL_ENV:-}" ] || [ "${CONDA_DEFAULT_ENV:-}" != base ] ||
    fail "conda's base environment is active, which is left alone: activate another one, or leave out --active."
elif [ ! -e "$environment" ]; then
  make_environment
fi
python=$environment/bin/python
# The Python's version and the names of all packages. Without -I, metadata that a build
# left in the project's folder would count as well.
facts=$("$python" -I -c '
import sys
from importlib.metadata import distributions

names = [str(d.metadata["Name"]).lower().replace("_", "-") for d in distributions()]
print("%d.%d" % sys.version_info[:2], *names)' 2>/dev/null) ||
  fail "the Python of $environment does not start: $remedy, then run this again."
has() { [[ "$facts " == *" $1 "* ]]; }

[[ "$facts " == 3.1[0-3]\ * ]] ||
  fail "$environment has Python ${facts%% *}, but 3.10 to 3.13 is needed: $remedy, then run this again."
for name in $other_stack; do
  ! has "$name" || fail "$environment holds $name, and packages of the $stack stack would overwrite its files: uninstall it, or use another environment."
done
if has mmcv && has mmcv-lite; then
  fail "$environment holds both mmcv and mmcv-lite, which overwrite each other: run '$python -m pip uninstall -y mmcv mmcv-lite', then this again."
fi
if [ "$stack" = openmmlab ] && has mmcv; then
  extras=full,mim,deploy,tiff,test
fi

finish() {
  [ ! "$print_python" ] || echo "$python"
  exit 0
}

stamp=$environment/mmseg_twins-setup.stamp
current=$({
  echo "$root $environment $stack ${active:-pinned}"
  cat setup.py pyproject.toml mmseg_twins/{version,compat/stacks,compat/hook}.py "$pins"
} | cksum)
if has mmseg-twins && [ -e mmseg_twins/.mim/model-index.yml ] &&
  [ "$(cat "$stamp" 2>/dev/null)" = "$current" ] && { [ ! "$full" ] || has mmcv; }; then
  say "Ready, nothing has changed: $environment"
  finish
fi
[ -w "$environment" ] || fail "$environment is not writable: $remedy, then run this again."
rm -f "$stamp"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
say "Setting up $environment (Python ${facts%% *}, $stack stack)"

# Standard output is for --print-python.
pip() {
  "$python" -m pip "$@" >&2 </dev/null || fail "'pip $1' has failed, see above."
}
has pip || "$python" -m ensurepip >&2 || fail "$environment has neither pip nor ensurepip: install pip into it."

# Reads pip's report on what it would install. `hold` prints constraints for packages to
# keep, which are large or which others are compiled against; `pin` the packages to
# install; `replaced` and `broken` the effect on installed packages.
read_report() {
  "$python" -I - "$1" "$work/report.json" <<'PY'
import json
import sys
from importlib.metadata import distributions

from pip._vendor.packaging.requirements import InvalidRequirement, Requirement
from pip._vendor.packaging.utils import canonicalize_name

HELD = ('torch', 'torchvision', 'torchaudio', 'numpy', 'mmcv')


def unmet(name, requires, extras, versions):
    """Yield the requirements of a package that some versions do not meet."""
    for text in requires or ():
        try:
            requirement = Requirement(text)
        except InvalidRequirement:  # in some old packages
            continue
        marker, required = requirement.marker, canonicalize_name(requirement.name)
        if (
            required in versions
            and (not marker or any(marker.evaluate({'extra': e}) for e in extras))
            and not requirement.specifier.contains(versions[required], prereleases=True)
        ):
            yield required, f'{name} needs {requirement.name}{requirement.specifier}'


step, report = sys.argv[1:]
with open(report, encoding='utf-8') as file:
    items = json.load(file)['install']
installed = {canonicalize_name(str(d.metadata['Name'])): d for d in distributions()}
before = {name: package.version for name, package in installed.items()}
after = {canonicalize_name(i['metadata']['name']): i['metadata']['version'] for i in items}
reasons = {}
for item in items:
    data, extras = item['metadata'], item.get('requested_extras') or ['']
    for name, text in unmet(data['name'], data.get('requires_dist'), extras, before):
        reasons.setdefault(name, text)
after.pop('mmseg-twins')
conflicts = [
    conflict
    for name, package in installed.items()
    if name not in (*after, 'mmseg-twins')
    for conflict in unmet(name, package.requires, [''], after)
]
# torch brings along the newest setuptools, which few packages need.
spared = {'setuptools'} - {name for name, _ in conflicts}

if step == 'hold':
    print(*(f'{n}=={before[n]}' for n in HELD if n in before and n not in reasons), sep='\n')
elif step == 'pin':
    print(*(f'{name}=={version}' for name, version in after.items()), sep='\n')
elif step == 'replaced':
    print(', '.join(
        f'{name} {before[name]} with {version} ({reasons.get(name, "others need it")})'
        for name, version in after.items()
        if before.get(name, version) != version and name not in spared
    ))  # fmt: skip
else:
    print(', '.join(text for _, text in conflicts))
PY
}

# Lets pip plan, shows the plan, and installs exactly that.
install_into_active() {
  local replaced broken
  say 'Asking pip what it would install'
  pip install -q --dry-run --no-deps --report "$work/report.json" -e ".[$extras]"
  read_report hold >"$work/held.txt"
  pip install --dry-run -c "$work/held.txt" --report "$work/report.json" -e ".[$extras]"
  read_report pin >"$work/pins.txt"
  replaced=$(read_report replaced)
  broken=$(read_report broken)
  [ ! "$broken" ] || say "Would no longer fit: $broken"
  [ ! "$replaced" ] || [ "$yes" ] ||
    fail "this would replace $replaced in $environment: add --yes to allow it, or leave out --active to use an environment in the project."
  say "Installing these packages${replaced:+, replacing $replaced}"
  pip install --no-deps -r "$work/pins.txt" -e ".[$extras]"
}

# Replaces mmcv-lite with full mmcv once that has been built.
build_full_mmcv() {
  say 'Building full mmcv from source (about twenty minutes on two cores)'
  # pip's cache may have a wheel without ops, or one compiled against another torch.
  MMCV_WITH_OPS=1 pip wheel --no-cache-dir --no-deps --no-build-isolation --use-pep517 \
    -c requirements/tested.txt -w "$work" mmcv
  pip uninstall -y mmcv-lite
  pip install --no-index --no-deps "$work"/mmcv-*.whl
}

if [ "$active" ]; then
  install_into_active
else
  say "Installing mmseg_twins[$extras] with the versions of $pins"
  pip install -c "$pins" -e ".[$extras]"
fi
if [ "$full" ] && ! has mmcv; then
  build_full_mmcv
fi
"$python" -c 'import cv2' >&2 ||
  fail "OpenCV does not load: on a bare Linux machine it needs libGL and GLib (Debian, Ubuntu: apt install libgl1 libglib2.0-0; Fedora: dnf install mesa-libGL glib2)."

# mmengine imports yapf, whose first import writes a cache: processes of a first run on
# several GPUs would read half of it.
"$python" -c 'import yapf' >&2 || fail "yapf does not load, see above."

echo "$current" >"$stamp"
say "Done in $SECONDS s: $environment"
[ "$active" ] || say "To use it in your shell: source $environment/bin/activate"
finish
