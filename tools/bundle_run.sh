#!/usr/bin/env bash
# run SECONDS [arguments of snakemake]: a part of the run, from where the last one stopped.
# What is done comes back as state/part.*, files of at most 15 MB: put them there again before the next
# part, where the machine is a new one. The last line says whether all is done.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
seconds=$1
shift
if [ -d "$here/wheels" ] && [ ! -d "$here/site" ]; then
    python3 -m pip install -q --no-index --no-deps --no-compile --target "$here/site" "$here"/wheels/*.whl
fi
export PYTHONPATH="$here/tree/src:$here/site${PYTHONPATH:+:$PYTHONPATH}"
cd "$here/tree"
if [ ! -d results ] && ls "$here"/state/part.* >/dev/null 2>&1; then
    cat "$here"/state/part.* | tar xzf -
fi
status=0
timeout --signal=INT --kill-after=60 "$seconds" python3 -m snakemake "$@" || status=$?
rm -rf "$here/state"
mkdir "$here/state"
tar czf - --format=posix results .snakemake/metadata .snakemake/incomplete 2>/dev/null | split -b 15M - "$here/state/part."
[ "$status" = 0 ] && echo "done" || echo "not done yet: call the same again (status $status)"
