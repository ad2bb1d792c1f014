-- Leave: give everything back at once.
-- KEYS: see _lib.lua
-- ARGV: worker, session
-- Returns how many slots it owned; 0 when the session is not its newest.
if redis.call("HGET", m, "s:" .. ARGV[1]) ~= ARGV[2] then return 0 end
local taken = take_back(ARGV[1])
pump_for_all()
return taken
