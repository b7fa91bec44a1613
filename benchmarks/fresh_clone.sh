#!/usr/bin/env bash
# Times `make demo` as a new user has it: from a fresh clone, in a fresh environment. Prints Markdown.
#   --test   also times `make test`, from the same clone
# Packages come from pip's cache where they are in it.
set -euo pipefail
case "${1-}" in
  "") test= ;;
  --test) test=1 ;;
  *) echo "usage: $0 [--test]" >&2; exit 2 ;;
esac
cd "$(git -C "$(dirname "$0")" rev-parse --show-toplevel)"
clone=$(mktemp -d)
trap 'rm -rf "$clone"' EXIT
git clone --quiet . "$clone/onetrunk"
cd "$clone/onetrunk"

row() { # what, since when
  awk -v what="$1" -v from="$2" -v now="$EPOCHREALTIME" 'BEGIN { printf "| %s | %.1f |\n", what, now - from }'
}

seconds() { # what, command...: runs the command and prints one row
  local what=$1 started=$EPOCHREALTIME
  shift
  "$@" >"$clone/log" 2>&1 || { cat "$clone/log" >&2; exit 1; }
  row "$what" "$started"
}

echo "commit $(git rev-parse --short HEAD), $(nproc) cores, $(sed -n 's/^model name\s*: //p;' /proc/cpuinfo | head -1)"
echo
echo "| step of \`make demo\` | seconds |"
echo "|---|---|"
started=$EPOCHREALTIME
seconds "install into a fresh .venv" make .venv/.serving
seconds "\`build-repo --tasks all\`" .venv/bin/build-repo --tasks all
seconds "start Triton, ask, stop" .venv/bin/python examples/demo.py --ask
row "all" "$started"
seconds "\`build-repo --tasks all\` again, nothing changed" .venv/bin/build-repo --tasks all
if [ -n "$test" ]; then
  seconds "install what tests need" make .venv/.developing
  seconds "\`make test\`" make test
fi
