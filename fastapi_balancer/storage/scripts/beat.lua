-- Renew one worker's lease; now and then take back what dead workers held, and derive `used` anew.
-- KEYS: see _lib.lua
-- ARGV: worker, session, lease ms, grace ms, ms between two sweeps
-- Returns {slots taken back, worker...} with every worker that holds a lease, or {-1}: the session is not this worker's newest.
local me, session = ARGV[1], ARGV[2]
local lease, grace, pause = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
if redis.call("HGET", m, "s:" .. me) ~= session then return {-1} end

local now = now_ms()
redis.call("ZADD", h, now + lease, me)
local learning = redis.call("HGET", m, "learn")
if learning then declare(me, tonumber(redis.call("HGET", m, "o:" .. me)), "any") end

local function is_dead(worker, expiry)
  if expiry <= now then return true end
  -- Neither a subscription nor a beat: the kernel has closed its sockets, so the process is gone.
  if expiry - lease > now - grace then return false end
  local channel = session_channel(worker, redis.call("HGET", m, "s:" .. worker) or "")
  return redis.call("PUBSUB", "NUMSUB", channel)[2] == 0
end

local taken = 0
local swept = tonumber(redis.call("HGET", m, "sweep") or "0")
if learning then
  -- The store was away, maybe for longer than a lease: who has not come back yet need not be dead.
  pump_for_all()
elseif now - swept >= pause or now < swept then
  local leases = redis.call("ZRANGE", h, 0, -1, "WITHSCORES")
  local used = 0
  for i = 1, #leases, 2 do
    if is_dead(leases[i], tonumber(leases[i + 1])) then
      taken = taken + take_back(leases[i])
    else
      used = used + tonumber(redis.call("HGET", m, "o:" .. leases[i]) or "0")
    end
  end
  redis.call("HSET", m, "sweep", now, "used", used)
  for _, key in ipairs(KEYS) do redis.call("PEXPIRE", key, 604800000) end
  pump_for_all()
end
return {taken, unpack(redis.call("ZRANGE", h, 0, -1))}
