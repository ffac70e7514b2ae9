-- Makes a try of an entry that the sender has been given, or clears the entry away.
-- Keys: hooks, hook:{id}, hooks:dead, counters.
-- ARGV: 2 sender, 3 entry, 4 id, 5 token of this claim: repeating it changes nothing, 6 most attempts, 7 dead ones kept.
-- Returns {'claimed', attempt, record as JSON} or {'skipped'}.
local hooks, entry, id = PREFIX .. 'hooks', ARGV[3], ARGV[4]
if #redis.call('XPENDING', hooks, GROUP, entry, entry, 1, ARGV[2]) == 0 then
  return {'skipped'}
end
local hook = read_hash(key('hook', id))
if hook.entry ~= entry or not hook.record then
  drop_hook_entry(entry)
  return {'skipped'}
end
if hook.claim == ARGV[5] then
  return {'claimed', tonumber(hook.attempts), hook.record}
end
if tonumber(hook.attempts) >= tonumber(ARGV[6]) then
  bury_hook(id, hook, hook.last_error or 'its sender was lost at every attempt', ARGV[7])
  return {'skipped'}
end
redis.call('HSET', key('hook', id), 'claim', ARGV[5])
return {'claimed', redis.call('HINCRBY', key('hook', id), 'attempts', 1), hook.record}
