-- Brings the messages whose pause is over back to the outbox.
-- Keys: hooks, hooks:due, hook:{id}. ARGV: 2 most at once.
-- Returns the milliseconds until the next is due, -1 where none waits.
local hooks, due = PREFIX .. 'hooks', PREFIX .. 'hooks:due'
if redis.call('EXISTS', hooks) == 0 or #redis.call('XINFO', 'GROUPS', hooks) == 0 then
  redis.call('XGROUP', 'CREATE', hooks, GROUP, '0', 'MKSTREAM')
end
local ms = now_ms()
for _, hook in ipairs(redis.call('ZRANGEBYSCORE', due, '-inf', seconds(ms), 'LIMIT', 0, ARGV[2])) do
  redis.call('ZREM', due, hook)
  redis.call('HSET', key('hook', hook), 'entry', redis.call('XADD', hooks, '*', 'hook', hook))
end
local first = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')
if #first == 0 then
  return -1
end
return math.max(0, math.ceil(tonumber(first[2]) * 1000 - ms))
