#!/bin/sh
# Write constraints.txt anew: `make lock`, after a change to the requirements
# in pyproject.toml. Needs uv (pip install uv). PyTorch is held where the
# measurements in the book were made; raise it here, and measure again.
set -eu
cd "$(dirname "$0")/.."
pins=$(mktemp)
lock=$(mktemp)
trap 'rm -f "$pins" "$lock"' EXIT
echo "torch==2.13.0" >"$pins"
uv pip compile pyproject.toml --all-extras --universal \
    --python-version 3.11 --fork-strategy fewest --upgrade \
    --constraint "$pins" --no-header --no-annotate --quiet -o "$lock"
{
    echo "# The exact versions that the tests and the book run with, on"
    echo "# Python 3.11, 3.12 and 3.13. Written by tools/lock.sh: do not edit."
    echo "# Use: pip install -c constraints.txt -e '.[book,test,data,qlora]'"
    cat "$lock"
} >constraints.txt
