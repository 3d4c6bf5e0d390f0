#!/bin/sh
# Starts the sentinel of this pod, with the same id each time: others would count a new one.
set -u
REDISCLI_AUTH="$(cat /etc/redis/password)"
export REDISCLI_AUTH
. /etc/redis/find-master.sh
master=$(find_master)
# A name that does not resolve yet, or a master that still loads, would end the sentinel.
until valkey-cli -h "$master" ping 2>/dev/null | grep -q PONG; do
    sleep 1
    master=$(find_master)
done
umask 077
{
    echo "port 26379"
    echo "bind 0.0.0.0"
    echo "dir /tmp"
    # The same passwords as for Redis, which may be several.
    grep '^user ' /etc/redis/users.acl
    echo "sentinel sentinel-pass $REDISCLI_AUTH"
    echo "sentinel myid $(echo "$POD_NAME" | sha1sum | cut -c 1-40)"
    # Pods change their addresses, not their names.
    echo "sentinel resolve-hostnames yes"
    echo "sentinel announce-hostnames yes"
    echo "sentinel announce-ip $POD_NAME.redis"
    echo "sentinel monitor minmo $master 6379 2"
    echo "sentinel auth-pass minmo $REDISCLI_AUTH"
    echo "sentinel down-after-milliseconds minmo 5000"
    echo "sentinel failover-timeout minmo 10000"
    echo "sentinel parallel-syncs minmo 1"
} >/tmp/sentinel.conf
exec valkey-server /tmp/sentinel.conf --sentinel
