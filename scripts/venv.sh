#!/usr/bin/env bash
# Makes a virtual environment with detzoo in it, in the versions of constraints.txt; the code stays where it is (pip -e).
#
#   bash scripts/venv.sh .venv          # to use detzoo
#   bash scripts/venv.sh .venv dev      # with the extra `dev` of setup.py; several are separated by commas
#
# $PYTHON chooses the Python; without it, that of the folder if it has one, else the first on the PATH of 3.11, 3.12, 3.13.
# A second time it does nothing, unless setup.py, constraints.txt, the extras or the Python changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=${1:?usage: bash scripts/venv.sh FOLDER [EXTRAS]}
extras=${2:-}

is_usable() {
    "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

python=
if [ -n "${PYTHON:-}" ]; then
    candidates=("$PYTHON")
else
    candidates=("$folder/bin/python" python3.11 python3.12 python3.13 python3)
fi
for candidate in "${candidates[@]}"; do
    if is_usable "$candidate"; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    {
        echo "error: detzoo needs Python 3.11 or newer with the modules venv and ensurepip; tried: ${candidates[*]}"
        echo "Install one (Debian, Ubuntu: apt-get install python3-venv), or name it: PYTHON=/path/to/python bash ..."
    } >&2
    exit 1
fi

version=$("$python" -VV)
state="$PWD, $version, extras [$extras], $(cat setup.py constraints.txt | cksum)"
stamp=$folder/installed.txt
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$state" ]; then
    exit 0
fi

if [ "$("$folder/bin/python" -VV 2>/dev/null)" != "$version" ] || ! "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
    if [ -e "$folder" ] && [ ! -f "$folder/pyvenv.cfg" ]; then
        echo "error: $folder is there, but is no virtual environment" >&2
        exit 1
    fi
    echo "making $folder with ${version%% (*}"
    "$python" -m venv --clear "$folder"
fi
echo "installing detzoo${extras:+[$extras]} into $folder; this takes minutes the first time"
"$folder/bin/python" -m pip install -q --disable-pip-version-check -c constraints.txt -e ".${extras:+[$extras]}"
printf '%s\n' "$state" >"$stamp"
