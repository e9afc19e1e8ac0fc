# Sourced by the other scripts: enters the active virtual environment, or makes and enters .venv, and installs
# requirements.txt and the package when they have changed since the last time.
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -z "${VIRTUAL_ENV:-}" ]; then
  if [ ! -x .venv/bin/python ]; then
    echo "making .venv"
    "${PYTHON:-python3}" -m venv .venv
  fi
  # shellcheck disable=SC1091
  source .venv/bin/activate
fi

stamp="$VIRTUAL_ENV/.safevlm-installed"
wanted="$(cat requirements.txt setup.py | cksum) $PWD"
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  echo "installing requirements.txt (once; a few minutes)"
  python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
  python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
  echo "$wanted" >"$stamp"
fi

export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" TOKENIZERS_PARALLELISM=false
