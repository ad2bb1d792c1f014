-- Tell the store all that came up on one worker since its last call, and learn what it got.
-- KEYS: see _lib.lua
-- ARGV: worker, session, slots returned, queue_size, how many new tickets, how many cancelled, new tickets..., cancelled...
-- Returns {seq before the first new ticket, tickets accepted, head of the line, 1 when every free slot is wanted back (others wait,
--   or more are owned than there are by now), ms of learning left, granted tickets...}
--   or {-1}: the session is not this worker's newest, it has to attach.
local me, session = ARGV[1], ARGV[2]
local returned, queue_size = tonumber(ARGV[3]), tonumber(ARGV[4])
local new, cancelled = tonumber(ARGV[5]), tonumber(ARGV[6])
local first_new, first_cancelled = 7, 7 + new

local v = redis.call("HMGET", m, "s:" .. me, "o:" .. me, "used", "cap", "seq", "contended", "learn")
local cap = tonumber(v[4] or "")
if v[1] ~= session or not cap then return {-1} end
local own, used, seq = tonumber(v[2]) - returned, tonumber(v[3]) - returned, tonumber(v[5])

if cancelled > 0 then
  local members = {}
  for i = 1, cancelled do members[i] = me .. ":" .. ARGV[first_cancelled + i - 1] end
  redis.call("ZREM", q, unpack(members))
end

local limit, learning = cap, 0
if v[7] then
  declare(me, own + returned, "any")
  redis.call("HSET", m, "o:" .. me, own)
  limit, learning = limit_now(cap)
end

local mine = {}
local base, accepted = seq, 0
local length = redis.call("ZCARD", q)
if new > 0 then
  if length == 0 then
    while accepted < new and used < limit do
      accepted = accepted + 1
      mine[accepted] = ARGV[first_new + accepted - 1]
      own, used = own + 1, used + 1
    end
  end
  local members = {}
  while accepted < new and length < queue_size do
    accepted, length = accepted + 1, length + 1
    members[#members + 1] = base + accepted
    members[#members + 1] = me .. ":" .. ARGV[first_new + accepted - 1]
  end
  if #members > 0 then redis.call("ZADD", q, unpack(members)) end
  seq = base + accepted
end

if length > 0 and used < limit then
  local got
  used, length, got = pump(me, used, limit, mine)
  own = own + got
end
local contended = length > 0 and "1" or "0"
if contended == "1" and v[6] ~= "1" then tell_all("R") end
redis.call("HSET", m, "o:" .. me, own, "used", used, "seq", seq, "contended", contended)
local over = used > cap  -- it was lowered: then nothing is handed over at the head of the line either
local head = (length > 0 and not over) and tonumber(head_of_line()) or 0
local reply = {base, accepted, head, (length > 0 or over) and 1 or 0, learning}
for i, ticket in ipairs(mine) do reply[5 + i] = ticket end  -- unpack() takes some 8000 at most
return reply
