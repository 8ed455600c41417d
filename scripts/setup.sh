#!/usr/bin/env bash
# Make the environment .venv in the project's folder: pinned versions of torch and the rest, yolox 0.3.0, this kit.
#
#   scripts/setup.sh            what training needs
#   scripts/setup.sh --test     and what the tests need, other hosts (.hosts) among it
#   PYTHON=/path/to/python3.12 scripts/setup.sh
#
# Needs Python 3.10-3.13 with its headers and a C++ compiler. A second call sees that all is there and does nothing.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
python=$venv/bin/python

say() { printf '%s\n' "setup: $*"; }
fail() { printf '%s\n' "setup: $*" >&2; exit 1; }

with_test=no
case "${1-}" in
    "") ;;
    --test) with_test=yes ;;
    *) fail "unknown argument '$1'; the only one is --test" ;;
esac
[ $# -le 1 ] || fail "one argument at most: --test"

# Prints nothing when the Python given is suitable, else why not.
why_not() {
    "$1" - 2>&1 <<'PY' || printf '%s\n' "does not run"
import os, sys, sysconfig
version = ".".join(map(str, sys.version_info[:3]))
if not (3, 10) <= sys.version_info[:2] <= (3, 13):
    print(f"is Python {version}, not 3.10-3.13")
else:
    try:
        import ensurepip, venv
    except ImportError:
        print("has no venv module (Debian and Ubuntu: install python3-venv)")
    else:
        if not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
            print("has no headers, which building yolox takes (Debian and Ubuntu: install python3-dev)")
PY
}

find_python() {
    local candidates=(python3.13 python3.12 python3.11 python3.10 python3 python) candidate reason reasons=""
    if [ -n "${PYTHON-}" ]; then candidates=("$PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        command -v "$candidate" >/dev/null 2>&1 || continue
        # A version manager's stand-in for a Python that is not installed does not run: the next one then.
        "$candidate" -c "" >/dev/null 2>&1 || continue
        reason=$(why_not "$candidate")
        if [ -z "$reason" ]; then
            base_python=$("$candidate" -c 'import sys; print(sys.executable)')
            return
        fi
        reasons="$reasons
  $candidate $reason"
    done
    if [ -n "${PYTHON-}" ] && [ -z "$reasons" ]; then reasons="
  PYTHON=$PYTHON is no Python that runs"; fi
    fail "no suitable Python found. Needed: 3.10, 3.11, 3.12 or 3.13 with venv and headers.${reasons:-
  none of these is on the PATH and runs: ${candidates[*]}}
  Install one, or name one: PYTHON=/path/to/python3.12 scripts/setup.sh"
}

find_compiler() {
    local candidate
    for candidate in ${CXX:+"$CXX"} c++ g++ clang++; do
        # CXX may carry options, so it is split into words. The words of a compiler that is not there fail here too.
        # shellcheck disable=SC2086
        if printf '#include <vector>\nint main() { return 0; }\n' | $candidate -x c++ -c -o /dev/null - 2>/dev/null; then
            export CXX=$candidate
            return
        fi
    done
    fail "no C++ compiler found, which building yolox takes. Install one (Debian and Ubuntu: g++; Fedora: gcc-c++;
  macOS: xcode-select --install), or name one: CXX=/path/to/g++ scripts/setup.sh"
}

# A stamp says what an environment was made from. Another Python or another folder: it is made anew. Other
# requirements: they are installed over it. Written last, so that a broken off installation goes on the next time.
stamp_of() {
    "$1" - "$root" "${@:2}" <<'PY'
import hashlib, sys
from pathlib import Path
root = Path(sys.argv[1])
digest = hashlib.sha256(f"{sys.version} {root}".encode())
for name in sys.argv[2:]:
    digest.update(name.encode() + b"\0" + (root / name).read_bytes())
print(digest.hexdigest())
PY
}
is_stamped() { [ -f "$venv/$1" ] && [ "$(cat "$venv/$1")" = "$2" ]; }

pip_install() {
    local quiet=""
    [ -t 1 ] || quiet=-q
    "$python" -m pip install --disable-pip-version-check ${quiet:+"$quiet"} "$@" || fail "pip could not install: $*
  Its own message is above. If it was the network or a full disk, call this script again: what is installed is kept."
}

make_environment() {
    find_compiler
    if [ -x "$python" ] && is_stamped .stamp-python "$wanted_python"; then
        say "updating $venv"
    else
        if [ -e "$venv" ] && [ ! -f "$venv/pyvenv.cfg" ]; then
            fail "$venv is there and is no virtual environment; move it away"
        fi
        say "making $venv with $base_python ($("$base_python" --version 2>&1))"
        rm -rf "$venv"
        "$base_python" -m venv "$venv" || fail "could not make a virtual environment in $venv"
        printf '%s\n' "$wanted_python" >"$venv/.stamp-python"
    fi
    say "installing torch and the other requirements (the first time: several GB, some minutes)"
    pip_install -r "$root/requirements.txt"
    if ! "$python" -c 'from importlib.metadata import version; import sys; sys.exit(version("yolox") != "0.3.0")' 2>/dev/null
    then
        say "building yolox 0.3.0 (about half a minute)"
        # It imports torch to build, hence no isolation; its own list of requirements cannot be met any more, hence
        # no dependencies. A cached wheel may be built against another torch.
        pip_install --no-deps --no-build-isolation --no-cache-dir yolox==0.3.0
    fi
    say "installing the kit"
    pip_install --no-deps --no-build-isolation -e "$root"
    (cd "$venv" && "$python" -c 'import yolox.exp, yolox.layers.fast_cocoeval') ||
        fail "yolox was installed and cannot be imported; the reason is above"
    printf '%s\n' "$wanted" >"$venv/.stamp"
}

if [ -z "${PYTHON-}" ] && [ -x "$python" ] && [ -f "$venv/.stamp" ] && "$python" -c "" 2>/dev/null; then
    base_python=$python # an environment that is complete keeps its Python, whatever else is on the PATH
else
    find_python
fi
wanted_python=$(stamp_of "$base_python")
wanted=$(stamp_of "$base_python" requirements.txt pyproject.toml scripts/setup.sh)
wanted_test=$(stamp_of "$base_python" requirements.txt requirements-test.txt pyproject.toml scripts/setup.sh)

if [ ! -x "$python" ] || ! is_stamped .stamp "$wanted"; then
    # The folder was moved: the environment's own Python no longer tells which one it was made with.
    if [ "$base_python" = "$python" ] && ! is_stamped .stamp-python "$wanted_python"; then find_python; fi
    make_environment
    say "ready: $venv"
fi
if [ "$with_test" = yes ] && ! is_stamped .stamp-test "$wanted_test"; then
    say "installing the test tools"
    pip_install -r "$root/requirements-test.txt"
    printf '%s\n' "$wanted_test" >"$venv/.stamp-test"
fi
if [ "$with_test" = yes ]; then
    PYTHON=$python "$root/scripts/get_hosts.sh" || say "the tests of the hosts that are missing will be skipped"
fi
