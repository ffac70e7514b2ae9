-- Gives a failed job a fresh start: attempts from 1 again, its dead letter withdrawn.
-- Keys: job:{id}, jobs, jobs:{state}, events:{id}, work:{lane}, void:{lane}, expiring, dead, counters,
--       load, divided:{lane}. ARGV: 2 id, 3 most entries.
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
redis.call('HSET', key('job', id), 'attempts', 0, 'queued_at', seconds(now_ms()), 'entry', add_entry(job.lane, id, job.compat),
  'pixels_left', job.pixels or 0)
add_load(job.lane, job.pixels or 0)
-- The old story ends with `failed`; a follower of the new one must not stop there.
redis.call('DEL', key('events', id))
job.attempts = 0
enter(id, job, 'queued')
count('accepted', job.lane)
return {'queued'}
