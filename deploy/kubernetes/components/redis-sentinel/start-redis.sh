#!/bin/sh
# Starts Redis as what it is now: the master, or a replica of it.
set -u
REDISCLI_AUTH="$(cat /etc/redis/password)"
export REDISCLI_AUTH
. /etc/redis/find-master.sh
master=$(find_master)
me="$POD_NAME.redis"
umask 077
{
    echo "include /etc/redis/redis.conf"
    echo "replica-announce-ip $me"
    echo "masterauth $REDISCLI_AUTH"
    # A master that is cut off from all replicas must not take what would be lost.
    echo "min-replicas-to-write 1"
    echo "min-replicas-max-lag 5"
    # The replica with the lower number is taken first.
    echo "replica-priority $((10 + ${POD_NAME##*-}))"
    if [ "$master" != "$me" ]; then echo "replicaof $master 6379"; fi
} >/tmp/redis.conf
exec valkey-server /tmp/redis.conf
