-- Write a record if the lock is still held with this fencing number.
-- KEYS: 1 = record, 2 = lock
-- ARGV: fencing number, value
-- Returns 1, or 0 when the lock was lost.
local record, lock = KEYS[1], KEYS[2]
if redis.call("GET", lock) ~= ARGV[1] then return 0 end
redis.call("SET", record, ARGV[2])
return 1
