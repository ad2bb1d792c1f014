-- Declare one worker's absolute state, which replaces what the store believed of it. Repeating it changes nothing.
-- KEYS: see _lib.lua
-- ARGV: worker, session, slots owned, highest seq seen, lease ms, capacity ("": not known), "set" or "keep" (a stored capacity),
--   run id of the server, learning ms, "1" when it ran without the store since it last attached, "1" when it knows its peers,
--   how many peers, peers..., how many tickets, then seq and ticket of each
-- Returns {capacity or -1 (not limited), ms of learning left, head of the line, 1 when every free slot is wanted back} (see sync.lua),
--   or {-2}: the session is too old.
local me, session = ARGV[1], ARGV[2]
local own, highest, lease = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local capacity, keep, run_id = ARGV[6], ARGV[7] == "keep", ARGV[8]
local learning_time, was_away, knows_peers = tonumber(ARGV[9]), ARGV[10] == "1", ARGV[11] == "1"
local peers = tonumber(ARGV[12])
local now = now_ms()

local v = redis.call("HMGET", m, "srv", "cap", "s:" .. me, "learn")
if v[1] ~= run_id then
  -- Another server process, or an empty one: what it says of slots is not to be believed, the workers are.
  -- New tickets queue behind every ticket that some worker is still to declare: numbers begin at the time in ms, which
  -- grows faster than they do.
  redis.call("DEL", m, q, h)
  redis.call("HSET", m, "srv", run_id, "used", 0, "seq", math.max(now, highest + 1000000), "contended", "0")
  begin_learning(now + learning_time)
  if v[2] then redis.call("HSET", m, "cap", v[2]) end
  v = {run_id, v[2], false, now + learning_time}
  tell_all("A " .. me)  -- those whose connection has outlived the data
end
if v[3] and tonumber(v[3]) > tonumber(session) then return {-2} end

-- What this worker remembers is better than nothing, and the stored one is newer.
if capacity ~= "" and capacity ~= v[2] and not (keep and v[2]) then
  redis.call("HSET", m, "cap", capacity)
  tell_all("C " .. capacity)
end

local learning = v[4] and tonumber(v[4]) > now
if learning and knows_peers then
  redis.call("HSET", m, "roll", "1")
  for i = 1, peers do
    local peer = ARGV[12 + i]
    if redis.call("HEXISTS", m, "d:" .. peer) == 0 then must_declare(peer, "any") end
  end
elseif was_away and not learning then
  begin_learning(now + learning_time)
  redis.call("HSET", m, "roll", "1")
  for _, peer in ipairs(redis.call("ZRANGE", h, 0, -1)) do must_declare(peer, "any") end
end
if redis.call("HGET", m, "learn") then declare(me, own, "attach") end

local believed = tonumber(redis.call("HGET", m, "o:" .. me) or "0")
if not v[3] then tell_all("P " .. me) end
redis.call("HSET", m, "s:" .. me, session, "o:" .. me, own)
redis.call("HINCRBY", m, "used", own - believed)
redis.call("ZADD", h, now + lease, me)
if highest > tonumber(redis.call("HGET", m, "seq")) then redis.call("HSET", m, "seq", highest) end

-- Its tickets of before may have been given up meanwhile: what it declares now replaces them.
drop_tickets(me)
local first = 13 + peers
for i = 1, tonumber(ARGV[first]) do
  redis.call("ZADD", q, ARGV[first + 2 * i - 1], me .. ":" .. ARGV[first + 2 * i])
end
pump_for_all()
local length = redis.call("ZCARD", q)
if length > 0 then tell_all("R") end
local cap = tonumber(redis.call("HGET", m, "cap") or "") or -1
local _, left = limit_now(cap)
local over = cap >= 0 and tonumber(redis.call("HGET", m, "used")) > cap
return {cap, left, over and 0 or tonumber(head_of_line()), (over or length > 0) and 1 or 0}
