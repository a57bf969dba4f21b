#!/bin/sh
# Makes a Redis data folder with an append-only file out of a snapshot, as `redis-cli --rdb` takes one.
# A server that starts with `appendonly yes` looks at that file alone: beside a snapshot it would start empty.
set -eu

if [ $# -ne 2 ]; then
    echo "usage: restore-redis.sh SNAPSHOT.rdb DATA_FOLDER" >&2
    exit 2
fi
snapshot=$1
data=$2
[ -r "$snapshot" ] || { echo "there is no snapshot $snapshot" >&2; exit 3; }
mkdir -p "$data"
if [ -n "$(ls -A "$data")" ]; then
    echo "$data is not empty: move away what is there first, it is not overwritten" >&2
    exit 4
fi

socket=$(mktemp -u "${TMPDIR:-/tmp}/restore-redis.XXXXXX")
cp "$snapshot" "$data/dump.rdb"
redis-server --dir "$data" --dbfilename dump.rdb --appendonly no --save "" --port 0 \
    --unixsocket "$socket" --logfile "$data/restore.log" --daemonize no &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT

# Loading a large snapshot takes its time; a damaged one ends the server.
until [ "$(redis-cli -s "$socket" ping 2>/dev/null)" = PONG ]; do
    kill -0 "$server" 2>/dev/null || { cat "$data/restore.log" >&2; exit 7; }
    sleep 0.1
done
redis-cli -s "$socket" config set appendonly yes >/dev/null
until redis-cli -s "$socket" info persistence | grep -q "^aof_rewrite_in_progress:0" &&
    redis-cli -s "$socket" info persistence | grep -q "^aof_rewrite_scheduled:0"; do
    sleep 0.1
done
keys=$(redis-cli -s "$socket" dbsize)
redis-cli -s "$socket" shutdown nosave || true
wait "$server" || true
trap - EXIT
rm -f "$data/dump.rdb" "$data/restore.log"
echo "$data holds an append-only file of $keys keys"
