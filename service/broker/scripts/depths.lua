-- How much waits and runs in each lane, all at one moment.
-- Keys: work:{lane}, void:{lane}. ARGV: 2... lanes.
-- Returns {waiting, in flight, age of the oldest that waits (ms)} for each.
local BATCH = 100
local ms, answer = now_ms(), {}

-- Milliseconds since the oldest entry behind `after` came whose job is still wanted; 0 where there is none.
local function oldest_age(lane, after)
  repeat
    local entries = redis.call('XRANGE', key('work', lane), '(' .. after, '+', 'COUNT', BATCH)
    for _, entry in ipairs(entries) do
      after = entry[1]
      if redis.call('SISMEMBER', key('void', lane), after) == 0 then
        return math.max(0, ms - tonumber(string.match(after, '^%d+')))
      end
    end
  until #entries < BATCH
  return 0
end

for i = 2, #ARGV do
  local work = key('work', ARGV[i])
  local wanted, pending, age = wanted_entries(ARGV[i]), 0, 0
  if redis.call('EXISTS', work) == 1 then
    for _, flat in ipairs(redis.call('XINFO', 'GROUPS', work)) do
      local group = {}
      for j = 1, #flat, 2 do
        group[flat[j]] = flat[j + 1]
      end
      if group['name'] == GROUP then
        pending = group['pending']
        age = oldest_age(ARGV[i], group['last-delivered-id'])
      end
    end
  end
  table.insert(answer, {math.max(0, wanted - pending), pending, age})
end
return answer
