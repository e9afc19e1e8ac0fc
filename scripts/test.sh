#!/usr/bin/env bash
# Lint, format, types, then the tests on all cores; with --all alone, the thorough tests too. Other arguments go to
# pytest alone, as for the fast tests: scripts/test.sh -m "not slow" --numprocesses auto --dist loadfile
set -euo pipefail
source "$(dirname "$0")/env.sh"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # tiny models: more threads only wait for each other

if [ $# -gt 0 ] && [ "$*" != --all ]; then
  exec python -m pytest "$@"
fi
source scripts/page.sh
ruff check .
ruff format --check .
mypy
# one call, in the order of tests/conftest.py: fast and slow tests of a file share what they build
python -m pytest "$@" --numprocesses auto --dist loadfile --no-loadscope-reorder --durations 15
