#!/bin/sh
# Settings that are secret come as files named after them, all others as variables.
set -eu

for file in "${SECRETS_FOLDER:-/run/secrets}"/ONESTEP_*; do
    [ -e "$file" ] || continue
    # Apart from `export`, which would hide that the file cannot be read.
    value=$(cat "$file")
    export "${file##*/}=$value"
done

exec "$@"
