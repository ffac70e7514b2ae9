-- Takes workers off the list whose card is gone; in one step, or one that comes back meanwhile would stay off it.
-- Keys: workers, worker:{id}.
-- Returns how many were taken off.
local forgotten = 0
for _, id in ipairs(redis.call('ZRANGE', PREFIX .. 'workers', 0, -1)) do
  if redis.call('EXISTS', key('worker', id)) == 0 then
    forgotten = forgotten + redis.call('ZREM', PREFIX .. 'workers', id)
  end
end
return forgotten
