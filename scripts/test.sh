#!/usr/bin/env bash
# Lint, format, types, the fast tests, then the slow ones, both on all cores. Arguments go to pytest alone:
# scripts/test.sh -k engine
set -euo pipefail
source "$(dirname "$0")/env.sh"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # tiny models: more threads only wait for each other

if [ $# -gt 0 ]; then
  exec python -m pytest "$@"
fi
source scripts/page.sh
ruff check .
ruff format --check .
mypy
python -m pytest -m "not slow" --numprocesses auto --dist loadfile --durations 5
python -m pytest -m slow --numprocesses auto --dist loadfile --durations 10
