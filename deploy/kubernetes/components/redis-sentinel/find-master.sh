# Prints the master's name: that of a sentinel's choice, or the first pod where no other pod has a
# sentinel yet. For start-redis.sh and start-sentinel.sh.
find_master() {
    for peer in redis-0.redis redis-1.redis redis-2.redis; do
        # What this pod's own sentinel knows may be older than what the others have decided.
        if [ "$peer" = "$POD_NAME.redis" ]; then continue; fi
        found=$(timeout 2 valkey-cli -h "$peer" -p 26379 --raw sentinel get-master-addr-by-name minmo 2>/dev/null | head -n 1)
        case $found in
            redis-?.redis) echo "$found"; return ;;
        esac
    done
    echo redis-0.redis
}
