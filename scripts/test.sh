#!/usr/bin/env bash
# Lint, the fast tests, then the slow ones. Arguments go to pytest: scripts/test.sh -k engine
set -euo pipefail
source "$(dirname "$0")/env.sh"

ruff check .
if [ $# -gt 0 ]; then
  exec python -m pytest "$@"
fi
python -m pytest -m "not slow" --durations 5
python -m pytest -m slow --durations 10
