-- What the steps on slots share; put before each of them.
-- KEYS: 1 = m (hash: the state), 2 = q (zset: seq -> "worker:ticket", the line), 3 = h (zset: lease expiry -> worker)
-- m: cap ("": no limit; missing: nobody has said), used, seq, srv, contended, sweep; per worker o:<w> (slots owned), s:<w> (session);
--    while learning: learn (until when, ms), known (slots declared so far), roll (1: those who must declare are known),
--    k:<w> (must declare yet; "attach": only by attaching), d:<w> (has declared)
local m, q, h = KEYS[1], KEYS[2], KEYS[3]
local prefix = string.sub(m, 1, -2)

local function now_ms()
  local t = redis.call("TIME")
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function session_channel(worker, session)
  return prefix .. "w:" .. worker .. "." .. session
end

local function tell_all(message)
  redis.call("PUBLISH", prefix .. "all", message)
end

local function head_of_line()
  return redis.call("ZRANGE", q, 0, 0, "WITHSCORES")[2] or "0"
end

local function end_learning()
  for _, field in ipairs(redis.call("HKEYS", m)) do
    local kind = string.sub(field, 1, 2)
    if kind == "k:" or kind == "d:" then redis.call("HDEL", m, field) end
  end
  redis.call("HDEL", m, "learn", "roll", "known")
end

-- Learning begins: nothing that no worker has declared is granted before `until_ms`.
local function begin_learning(until_ms)
  end_learning()
  redis.call("HSET", m, "learn", until_ms, "known", 0)
end

-- `how` is "any" (each of its steps shows that what the store believes of it is right) or "attach".
local function must_declare(worker, how)
  redis.call("HSET", m, "k:" .. worker, how, "roll", "1")
end

-- A worker has said, in this time of learning, how many slots it owns: `how` is the step, "attach" or "any" other.
local function declare(worker, owned, how)
  if how == "any" and redis.call("HGET", m, "k:" .. worker) == "attach" then return end
  redis.call("HDEL", m, "k:" .. worker)
  if redis.call("HSETNX", m, "d:" .. worker, "1") == 1 then redis.call("HINCRBY", m, "known", owned) end
end

-- How many slots may be owned now, and for how many ms learning goes on (0: not learning).
-- While learning only declared slots circulate: any other may be in use by a worker that is still to come.
local function limit_now(cap)
  local v = redis.call("HMGET", m, "learn", "roll", "known")
  if not v[1] then return cap, 0 end
  local left = tonumber(v[1]) - now_ms()
  local unsure, believed = 0, 0
  for _, field in ipairs(redis.call("HKEYS", m)) do
    if string.sub(field, 1, 2) == "k:" then
      unsure = unsure + 1
      believed = believed + tonumber(redis.call("HGET", m, "o:" .. string.sub(field, 3)) or "0")
    end
  end
  if left <= 0 or (unsure == 0 and v[2]) then
    end_learning()
    return cap, 0
  end
  return math.min(cap, tonumber(v[3]) + believed), left
end

-- Grants free slots to the head of the line. A ticket of `me` is added to `mine`, any other is pushed to its worker;
-- where nobody listens it is dropped, for its worker declares it again when it attaches.
-- Returns used, the length of the line, and how many slots `me` got.
local function pump(me, used, limit, mine)
  local length = redis.call("ZCARD", q)
  local got = 0
  while used < limit and length > 0 do
    local popped = redis.call("ZPOPMIN", q, limit - used)
    length = length - #popped / 2
    local by_worker, order = {}, {}
    for i = 1, #popped, 2 do
      local worker, ticket = string.match(popped[i], "^(.*):(%d+)$")
      if worker == me then
        mine[#mine + 1] = ticket
        used = used + 1
        got = got + 1
      else
        if not by_worker[worker] then
          by_worker[worker] = {}
          order[#order + 1] = worker
        end
        table.insert(by_worker[worker], ticket)
      end
    end
    local head = head_of_line()
    for _, worker in ipairs(order) do
      local tickets = by_worker[worker]
      local session = redis.call("HGET", m, "s:" .. worker)
      local message = (length > 0 and "1 " or "0 ") .. head .. " " .. table.concat(tickets, " ")
      if session and redis.call("PUBLISH", session_channel(worker, session), message) > 0 then
        redis.call("HINCRBY", m, "o:" .. worker, #tickets)
        used = used + #tickets
      end
    end
  end
  return used, length, got
end

-- Pumps for others, and notes whether anybody still waits.
local function pump_for_all()
  local v = redis.call("HMGET", m, "used", "cap")
  local used, cap = tonumber(v[1] or "0"), tonumber(v[2] or "") or 0
  local limit = limit_now(cap)
  local length
  used, length = pump("", used, limit, {})
  redis.call("HSET", m, "used", used, "contended", length > 0 and "1" or "0")
end

local function drop_tickets(worker)
  local members = {}
  for _, member in ipairs(redis.call("ZRANGE", q, 0, -1)) do
    if string.sub(member, 1, #worker + 1) == worker .. ":" then members[#members + 1] = member end
  end
  for i = 1, #members, 1000 do redis.call("ZREM", q, unpack(members, i, math.min(i + 999, #members))) end
end

-- Takes back all that a worker owned and waited for. Returns how many slots that were.
local function take_back(worker)
  local owned = tonumber(redis.call("HGET", m, "o:" .. worker) or "0")
  drop_tickets(worker)
  redis.call("HDEL", m, "o:" .. worker, "s:" .. worker, "k:" .. worker)
  redis.call("ZREM", h, worker)
  if owned ~= 0 then redis.call("HINCRBY", m, "used", -owned) end
  return owned
end
