# Sourced by test.sh: what the tests of the chat page need beyond requirements.txt. Where it cannot be had, those tests
# are skipped, and say so.
#
# The pins go into our own .venv alone. Chromium comes from the distribution, where apt-get may install.
if [ "$(python -c 'import sys; print(sys.prefix)')" -ef .venv ]; then
  pins="$(cksum <requirements-page.txt)"
  if [ "$(cat .venv/.safevlm-page-installed 2>/dev/null)" != "$pins" ]; then
    echo "installing requirements-page.txt into .venv (once)"
    if python -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements-page.txt; then
      echo "$pins" >.venv/.safevlm-page-installed
    else
      echo "note: requirements-page.txt is not installed; the tests of the page are skipped" >&2
    fi
  fi
fi
if ! command -v chromium >/dev/null && ! command -v chromium-browser >/dev/null; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing Chromium (once)"
    apt-get install --quiet=2 --yes --no-install-recommends chromium >/dev/null ||
      { apt-get update --quiet=2 && apt-get install --quiet=2 --yes --no-install-recommends chromium >/dev/null; } ||
      echo "note: Chromium is not installed; the browser test of the page is skipped" >&2
  else
    echo "note: there is no Chromium, and only root may install it; the browser test of the page is skipped" >&2
  fi
fi
