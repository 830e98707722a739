#!/usr/bin/env bash
# Builds the documentation site in build/site, and fails on any warning, such as a broken
# link. Installs the extra `docs` in the project's environment if it is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=$(bash tools/setup_env.sh --print-python)
if ! "$python" tools/check_versions.py --extras docs 2>/dev/null; then
  "$python" -m pip install -q -c requirements/tested.txt -e '.[docs]' >&2
  "$python" tools/check_versions.py --extras docs
fi
NO_MKDOCS_2_WARNING=1 "$python" -m mkdocs build --strict "$@"
echo "Open build/site/index.html"
