-- Take back at once what a worker held, of which the kernel says that its process is gone.
-- KEYS: see _lib.lua
-- ARGV: the dead worker
-- Returns how many slots it owned, or -1: it has left in good order, or another worker was faster.
if redis.call("HEXISTS", m, "s:" .. ARGV[1]) == 0 then return -1 end
local taken = take_back(ARGV[1])
pump_for_all()
return taken
