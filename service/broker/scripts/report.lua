-- Notes how far a job is, and tells the worker whether to go on.
-- Keys: job:{id}, events:{id}, counters. ARGV: 2 worker, 3 id, 4 fence, 5 progress as JSON, 6 '1' if it is the last,
--       7 shortest time between two events (ms).
-- Returns 'held', 'cancelling' or 'lost'.
local id = ARGV[3]
local f = redis.call('HMGET', key('job', id), 'state', 'owner', 'fence', 'lane', 'done')
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
local ms, shown, progress, last = now_ms(), id, ARGV[5], ARGV[6] == '1'
local video = video_of(id)
if video then
  -- A video's progress is the sum of its parts'.
  local done = cjson.decode(progress).done
  redis.call('HSET', key('job', id), 'done', done)
  local sum = redis.call('HINCRBY', key('job', video), 'frames_done', done - tonumber(f[5] or 0))
  local v = redis.call('HMGET', key('job', video), 'frames_total', 'divided_at', 'frames_kept')
  local total, elapsed, lately = tonumber(v[1]), ms / 1000 - tonumber(v[2]), sum - tonumber(v[3] or 0)
  local sum_of_parts = {done = sum, total = total, unit = 'frames'}
  if lately > 0 and elapsed > 0 then
    sum_of_parts.rate = math.floor(lately / elapsed * 1000 + 0.5) / 1000
    sum_of_parts.eta_seconds = math.floor((total - sum) * elapsed / lately * 100 + 0.5) / 100
  end
  shown, progress, last = video, cjson.encode(sum_of_parts), sum == total
end
redis.call('HSET', key('job', shown), 'progress', progress)
local told_ms = redis.call('HGET', key('job', shown), 'progress_ms')
if last or not told_ms or ms - tonumber(told_ms) >= tonumber(ARGV[7]) then
  redis.call('HSET', key('job', shown), 'progress_ms', ms)
  publish(shown, 'progress', progress)
end
return 'held'
