-- Ends a try. Repeating it changes nothing.
-- Keys: hooks, hooks:due, hook:{id}, hooks:dead, counters.
-- ARGV: 2 id, 3 token of the claim, 4 'delivered', 'retried', 'postponed' (the attempt does not count) or 'dead', 5 pause
--       until it is due again (ms), 6 what went wrong or '', 7 dead ones kept.
-- Returns 'settled' or 'lost'.
local id, verb = ARGV[2], ARGV[4]
local hook = read_hash(key('hook', id))
if not hook.claim or hook.claim ~= ARGV[3] then
  return 'lost'
end
if verb == 'dead' then
  bury_hook(id, hook, ARGV[6], ARGV[7])
  return 'settled'
end
drop_hook_entry(hook.entry)
if verb == 'delivered' then
  redis.call('DEL', key('hook', id))
  count('webhooks_delivered', hook.lane)
  return 'settled'
end
redis.call('HDEL', key('hook', id), 'claim', 'entry')
redis.call('ZADD', PREFIX .. 'hooks:due', seconds(now_ms() + tonumber(ARGV[5])), id)
if verb == 'postponed' then
  redis.call('HINCRBY', key('hook', id), 'attempts', -1)
else
  redis.call('HSET', key('hook', id), 'last_error', string.sub(ARGV[6], 1, DEAD_TEXT_MAX))
  count('webhooks_retried', hook.lane)
end
return 'settled'
