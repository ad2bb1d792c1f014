-- Take a lock that nobody holds, with a fencing number that is larger than every one before.
-- KEYS: 1 = lock (its fencing number while it is held), 2 = fence (the last number given)
-- ARGV: ttl ms
-- Returns the fencing number, or 0 when somebody holds it.
local lock, fence = KEYS[1], KEYS[2]
if redis.call("EXISTS", lock) == 1 then return 0 end
-- Not from 1 on: after a loss of data no number of before is given again.
local t = redis.call("TIME")
local now = t[1] * 1000000 + t[2]
local number = string.format("%.0f", math.max(tonumber(redis.call("GET", fence) or "0") + 1, now))
redis.call("SET", fence, number)
redis.call("SET", lock, number, "PX", ARGV[1])
return tonumber(number)
