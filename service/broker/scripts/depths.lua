-- How much waits and runs in each lane, all at one moment.
-- Keys: work:{lane}. ARGV: 2... lanes.
-- Returns {waiting, in flight, age of the oldest that waits (ms)} for each.
local ms, answer = now_ms(), {}
for i = 2, #ARGV do
  local work = key('work', ARGV[i])
  local waiting, pending, age = redis.call('XLEN', work), 0, 0
  if redis.call('EXISTS', work) == 1 then
    for _, flat in ipairs(redis.call('XINFO', 'GROUPS', work)) do
      local group = {}
      for j = 1, #flat, 2 do
        group[flat[j]] = flat[j + 1]
      end
      if group['name'] == GROUP then
        pending = group['pending']
        local oldest = redis.call('XRANGE', work, '(' .. group['last-delivered-id'], '+', 'COUNT', 1)
        if #oldest > 0 then
          age = math.max(0, ms - tonumber(string.match(oldest[1][1], '^%d+')))
        end
      end
    end
  end
  table.insert(answer, {math.max(0, waiting - pending), pending, age})
end
return answer
