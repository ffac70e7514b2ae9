-- Gives a failed job a fresh start: attempts from 1 again, its dead letter withdrawn. Of a divided video the parts that
-- are done stay done.
-- Keys: job:{id}, job:{id}.{number}, jobs, jobs:{state}, events:{id}, work:{lane}, void:{lane}, expiring, dead, counters,
--       load, divided:{lane}, workers. ARGV: 2 id, 3 most entries.
-- Returns {'queued'}, {'missing'}, {'full', length}, {'refused', state} or {'gone'} where the input is deleted.
local id = ARGV[2]
local job = read_job(id)
if not job.state then
  return {'missing'}
end
if job.state ~= 'failed' then
  return {'refused', job.state}
end
if not job.blobs then
  return {'gone'}
end
local length = unfinished_jobs(job.lane)
if length >= tonumber(ARGV[3]) then
  return {'full', tostring(length)}
end
if job.dead then
  redis.call('XDEL', PREFIX .. 'dead', job.dead)
end
redis.call('ZREM', PREFIX .. 'expiring', id)
redis.call('HDEL', key('job', id), 'error', 'last_error', 'dead', 'finished_at', 'expires_at', 'started_at', 'claimed_at',
  'progress', 'progress_ms', 'settled', 'worst')
-- The old story ends with `failed`; a follower of the new one must not stop there.
redis.call('DEL', key('events', id))
job.attempts, job.worst = 0, nil
local pixels = tonumber(job.pixels or 0)
if job.parts then
  local ms, kept = now_ms(), tonumber(job.frames_done)
  pixels = pixels - math.floor(pixels * kept / tonumber(job.frames_total))
  job.parts_queued, job.worst = 0, 1
  redis.call('HSET', key('job', id), 'attempts', 0, 'worst', 1, 'started_at', seconds(ms), 'divided_at', seconds(ms),
    'frames_kept', kept, 'progress', cjson.encode({done = kept, total = tonumber(job.frames_total), unit = 'frames'}))
  redis.call('SADD', key('divided', job.lane), id)
  enter(id, job, 'queued')
  enter(id, job, 'running')
  queue_parts(id, job)
  if tonumber(job.parts_done) == tonumber(job.parts) then
    queue_join(id, job)
  end
else
  redis.call('HSET', key('job', id), 'attempts', 0, 'queued_at', seconds(now_ms()),
    'entry', add_entry(job.lane, id, job.compat))
  enter(id, job, 'queued')
end
redis.call('HSET', key('job', id), 'pixels_left', whole(pixels))
add_load(job.lane, pixels)
count('accepted', job.lane)
return {'queued'}
