-- Take a lock that nobody holds, with a fencing number that is larger than every one before.
-- KEYS: 1 = lock (its fencing number while it is held), 2 = fence (counter)
-- ARGV: ttl ms
-- Returns the fencing number, or 0 when somebody holds it.
local lock, fence = KEYS[1], KEYS[2]
if redis.call("EXISTS", lock) == 1 then return 0 end
local number = redis.call("INCR", fence)
redis.call("SET", lock, number, "PX", ARGV[1])
return number
