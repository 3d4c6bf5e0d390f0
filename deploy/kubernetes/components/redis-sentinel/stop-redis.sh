#!/bin/sh
# Before Redis is stopped: a master hands over, so that no write is lost and nobody has to miss it.
REDISCLI_AUTH="$(cat /etc/redis/password)"
export REDISCLI_AUTH
is_master() { valkey-cli --raw role | head -n 1 | grep -q master; }
tries=0
while is_master && [ "$tries" -lt 15 ]; do
    for peer in redis-0.redis redis-1.redis redis-2.redis; do
        if [ "$peer" = "$POD_NAME.redis" ]; then continue; fi
        # "Coordinated": this server takes no more writes before the other has them all.
        if timeout 2 valkey-cli -h "$peer" -p 26379 sentinel failover minmo coordinated |
            grep -q -e OK -e INPROG; then break; fi
    done
    sleep 1
    tries=$((tries + 1))
done
