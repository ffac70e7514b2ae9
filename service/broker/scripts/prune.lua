-- Takes consumers off the lanes that have been idle for long, or one by name. One with pending entries stays: deleting it
-- would lose them.
-- Keys: work:{lane}. ARGV: 2 consumer or '', 3 idle for so long (ms), 4... lanes.
-- Returns how many were taken off.
local pruned = 0
for i = 4, #ARGV do
  local work = key('work', ARGV[i])
  if redis.call('EXISTS', work) == 1 then
    for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', work, GROUP)) do
      local consumer = {}
      for j = 1, #flat, 2 do
        consumer[flat[j]] = flat[j + 1]
      end
      local meant = ARGV[2] == consumer['name'] or ARGV[2] == ''
      if meant and consumer['pending'] == 0 and consumer['idle'] >= tonumber(ARGV[3]) then
        redis.call('XGROUP', 'DELCONSUMER', work, GROUP, consumer['name'])
        pruned = pruned + 1
      end
    end
  end
end
return pruned
