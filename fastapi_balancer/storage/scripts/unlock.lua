-- Give back a lock that is still held with this fencing number.
-- KEYS: 1 = lock
-- ARGV: fencing number
-- Returns 1, or 0 when the lock was lost.
local lock = KEYS[1]
if redis.call("GET", lock) ~= ARGV[1] then return 0 end
return redis.call("DEL", lock)
