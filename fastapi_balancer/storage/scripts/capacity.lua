-- Set how many slots there are, and tell every worker.
-- KEYS: see _lib.lua
-- ARGV: capacity, "" for no limit; learning ms
-- Returns the number of slots owned now.
local before = tonumber(redis.call("HGET", m, "cap") or "")
redis.call("HSET", m, "cap", ARGV[1])
if ARGV[1] ~= "" and not before then
  -- Until now nobody counted: nothing is granted before every worker has declared what it runs.
  begin_learning(now_ms() + tonumber(ARGV[2]))
  redis.call("HSET", m, "roll", "1")
  for _, worker in ipairs(redis.call("ZRANGE", h, 0, -1)) do must_declare(worker, "attach") end
end
tell_all("C " .. ARGV[1])
if ARGV[1] ~= "" then pump_for_all() end
local used = tonumber(redis.call("HGET", m, "used") or "0")
if ARGV[1] ~= "" and used > tonumber(ARGV[1]) then tell_all("R") end
return used
