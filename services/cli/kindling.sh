#!/bin/sh
# Finds the project's own Node 24, and keeps compiled code between calls.
self=$(readlink -f "$0")
root=$(CDPATH='' cd "$(dirname "$self")/../.." && pwd)
node="$root/node_modules/.bin/node"
[ -x "$node" ] || node=node
: "${NODE_COMPILE_CACHE:=${XDG_CACHE_HOME:-/var/cache}/kindling/compile}"
export NODE_COMPILE_CACHE
exec "$node" --disable-warning=ExperimentalWarning "$root/services/cli/main.ts" "$@"
