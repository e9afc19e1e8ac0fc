# Sourced by the other scripts: an environment with everything in it, and the folder of the project as the working folder.
#
# No environment active: makes and enters .venv, and installs requirements.txt and the package there whenever they change.
# Another one active (venv or conda, its base included): uses it as it is; what it lacks is named, and the script ends.
#   SAFEVLM_INSTALL=1  installs what the active environment lacks, by the ranges of setup.py: what is there stays
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Names in requirements.txt that the environment lacks, and the package itself.
safevlm_missing() {
  python - <<'PYTHON'
import re
from importlib.metadata import PackageNotFoundError, version


def lacks(name):
    try:
        return not version(name)
    except PackageNotFoundError:
        return True


lines = open("requirements.txt", encoding="utf-8").read().splitlines()
names = [re.match(r"[\w.-]+", line)[0] for line in lines if re.match(r"\w", line)]
print(*filter(lacks, [*names, "safevlm"]))
PYTHON
}

if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
  if [ ! -x .venv/bin/python ]; then
    echo "making .venv"
    "${PYTHON:-python3}" -m venv .venv
  fi
  # shellcheck disable=SC1091
  source .venv/bin/activate
fi

active="$(python -c 'import sys; print(sys.prefix)')"
if [ "$active" -ef .venv ]; then
  wanted="$(cat requirements.txt setup.py | cksum) $PWD"
  if [ "$(cat .venv/.safevlm-installed 2>/dev/null)" != "$wanted" ]; then
    echo "installing requirements.txt into .venv (once; a few minutes)"
    python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
    python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
    echo "$wanted" >.venv/.safevlm-installed
  fi
else
  missing="$(safevlm_missing)"
  if [ -n "$missing" ] && [ -z "${SAFEVLM_INSTALL:-}" ]; then
    cat >&2 <<TEXT
error: the active environment $active lacks: $missing
  install them there:           SAFEVLM_INSTALL=1 $0   (or: pip install -e '.[all]')
  the tested versions instead:  pip install -r requirements.txt && pip install --no-deps -e .
  an environment of its own:    deactivate (conda deactivate), then $0 makes .venv
TEXT
    exit 1
  elif [ -n "$missing" ]; then
    echo "installing into $active: $missing"
    python -m pip install --quiet --disable-pip-version-check --editable '.[all]'
  fi
fi

place="$(python -P -c 'from importlib.util import find_spec; print(find_spec("safevlm").submodule_search_locations[0])')"
[ "$place" -ef safevlm ] || echo "note: safevlm comes from $place, not from this folder" >&2

export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
