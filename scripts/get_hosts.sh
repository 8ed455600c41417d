#!/usr/bin/env bash
# Put every YOLOX that pip can give into a folder of its own, .hosts/NAME, for the tests that compare the kit with each.
#
#   scripts/get_hosts.sh                 with the Python of .venv, or PYTHON=/path/to/python scripts/get_hosts.sh
#
# yolox 0.3.0 is in the environment already. YOLOX's git main is not on the package index: name a checkout of it in the
# environment variable YOLOX_MAIN when you run the tests. A second call sees what is there and does nothing.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
python=${PYTHON:-$root/.venv/bin/python}
command -v "$python" >/dev/null || { echo "get_hosts: there is no $python; run scripts/setup.sh, or set PYTHON" >&2; exit 1; }

for requirement in pixeltable-yolox==0.4.3 yolox-datamint==0.3.1; do
    folder=$root/.hosts/${requirement%%==*}
    [ -f "$folder/.stamp" ] && [ "$(cat "$folder/.stamp")" = "$requirement" ] && continue
    echo "get_hosts: $requirement into $folder"
    rm -rf "$folder" "$folder.new"
    # Into a folder beside it first, so that one broken off is not taken for whole. Dependencies are the environment's.
    "$python" -m pip install -q --disable-pip-version-check --no-deps --target "$folder.new" "$requirement" || {
        rm -rf "$folder.new"
        echo "get_hosts: pip could not get $requirement; its own message is above" >&2
        exit 1
    }
    echo "$requirement" >"$folder.new/.stamp"
    mv "$folder.new" "$folder"
done
