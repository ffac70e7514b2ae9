-- Takes over one message whose sender has been silent for longer than a try takes, and forgets senders idle for long
-- that hold none.
-- Keys: hooks. ARGV: 2 sender, 3 silent for so long (ms), 4 idle for so long (ms).
-- Returns {entry, id} or {}.
local hooks = PREFIX .. 'hooks'
for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', hooks, GROUP)) do
  local consumer = {}
  for i = 1, #flat, 2 do
    consumer[flat[i]] = flat[i + 1]
  end
  if consumer['pending'] == 0 and consumer['idle'] >= tonumber(ARGV[4]) then
    redis.call('XGROUP', 'DELCONSUMER', hooks, GROUP, consumer['name'])
  end
end
local cursor = '0-0'
repeat
  local found = redis.call('XAUTOCLAIM', hooks, GROUP, ARGV[2], ARGV[3], cursor, 'COUNT', 1)
  cursor = found[1]
  if #found[2] > 0 then
    return {found[2][1][1], found[2][1][2][2]}
  end
until cursor == '0-0'
return {}
