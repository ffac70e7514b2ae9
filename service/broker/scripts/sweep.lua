-- Takes over one entry of a lane whose owner has been silent for a lease's length.
-- Keys: work:{lane}. ARGV: 2 worker, 3 lane, 4 length of a lease (ms).
-- Returns {entry, id} or {}.
ensure_group(ARGV[3])
local cursor = '0-0'
repeat
  local found = redis.call('XAUTOCLAIM', key('work', ARGV[3]), GROUP, ARGV[2], ARGV[4], cursor, 'COUNT', 1)
  cursor = found[1]
  if #found[2] > 0 then
    return {found[2][1][1], found[2][1][2][2]}
  end
until cursor == '0-0'
return {}
