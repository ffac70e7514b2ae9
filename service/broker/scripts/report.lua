-- Notes how far a job is, and tells the worker whether to go on.
-- Keys: job:{id}, events:{id}, counters. ARGV: 2 worker, 3 id, 4 fence, 5 progress as JSON, 6 '1' if it is the last,
--       7 shortest time between two events (ms).
-- Returns 'held', 'cancelling' or 'lost'.
local id = ARGV[3]
local f = redis.call('HMGET', key('job', id), 'state', 'owner', 'fence', 'lane', 'progress_ms')
local job = {state = f[1], owner = f[2], fence = f[3]}
if not is_held(job, ARGV[2], ARGV[4]) then
  if f[4] then
    count('lease_lost', f[4])
  end
  return 'lost'
end
if job.state == 'cancelling' then
  return 'cancelling'
end
redis.call('HSET', key('job', id), 'progress', ARGV[5])
local ms = now_ms()
if ARGV[6] == '1' or not f[5] or ms - tonumber(f[5]) >= tonumber(ARGV[7]) then
  redis.call('HSET', key('job', id), 'progress_ms', ms)
  publish(id, 'progress', ARGV[5])
end
return 'held'
