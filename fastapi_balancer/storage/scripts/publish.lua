-- Keep one worker's newest report, and forget reports older than a minute.
-- KEYS: 1 = reports (hash: worker -> report), 2 = times (zset: time ms -> worker)
-- ARGV: worker, report
-- Returns how many reports there are.
local reports, times = KEYS[1], KEYS[2]
local t = redis.call("TIME")
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call("HSET", reports, ARGV[1], ARGV[2])
redis.call("ZADD", times, now, ARGV[1])
for _, worker in ipairs(redis.call("ZRANGEBYSCORE", times, "-inf", now - 60000)) do
  redis.call("HDEL", reports, worker)
  redis.call("ZREM", times, worker)
end
redis.call("PEXPIRE", reports, 604800000)
redis.call("PEXPIRE", times, 604800000)
return redis.call("HLEN", reports)
