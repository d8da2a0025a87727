#!/bin/sh
# A Redis (or Valkey) server for the tests of the networked behaviour store, from the system's
# packages; and a Chromium for the test of the web page. Does nothing where they are there.
set -eu
missing=""
command -v redis-server >/dev/null || command -v valkey-server >/dev/null || missing="redis-server"
command -v chromium >/dev/null || command -v google-chrome >/dev/null || missing="$missing chromium"
[ -z "$missing" ] && exit 0
if ! command -v apt-get >/dev/null; then
    echo "install $missing with your system's package manager; tests that need them skip" >&2
    exit 0
fi
run=""
[ "$(id -u)" = 0 ] || run="sudo"
$run apt-get update -qq
$run env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
