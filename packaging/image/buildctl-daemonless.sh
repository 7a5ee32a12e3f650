#!/bin/sh
# Runs buildctl with a daemon that is started for it and stopped after it, for jobs
# that build once.
# Variables as in moby/buildkit: BUILDCTL, BUILDKITD, ROOTLESSKIT,
# BUILDKITD_FLAGS, BUILDCTL_CONNECT_RETRIES_MAX.
set -eu

dir=$(mktemp -d)
pid=
finish() {
  [ -z "$pid" ] || { kill "$pid" 2>/dev/null && wait "$pid"; } || true
  rm -rf "$dir"
}
trap finish EXIT

launcher=
if [ "$(id -u)" != 0 ]; then
  launcher=${ROOTLESSKIT:-rootlesskit}
fi
# shellcheck disable=SC2086 # flags are words
$launcher "${BUILDKITD:-buildkitd}" ${BUILDKITD_FLAGS-} --addr "unix://$dir/buildkitd.sock" > "$dir/log" 2>&1 &
pid=$!

tries=0
until "${BUILDCTL:-buildctl}" --addr "unix://$dir/buildkitd.sock" debug workers > /dev/null 2>&1; do
  tries=$((tries + 1))
  if [ "$tries" -gt "${BUILDCTL_CONNECT_RETRIES_MAX:-10}" ]; then
    echo "buildctl-daemonless.sh: buildkitd does not answer" >&2
    cat "$dir/log" >&2
    exit 1
  fi
  sleep 1
done
"${BUILDCTL:-buildctl}" --addr "unix://$dir/buildkitd.sock" "$@"
