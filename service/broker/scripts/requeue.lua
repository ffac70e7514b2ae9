-- Ends a lease and puts its job back in the lane; one that nobody wants any more is cancelled instead. Repeatable.
-- Keys: job:{id}, jobs, jobs:{state}, events:{id}, work:{lane}, void:{lane}, expiring, counters.
-- ARGV: 2 worker, 3 id, 4 fence, 5 'retried' or 'released' (the attempt does not count), 6 result's time to live (ms),
--       7 what went wrong or ''.
-- Returns 'settled' or 'lost'.
local worker, id, fence, verb = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local job = read_job(id)
local mark = fence .. ':' .. verb
if job.settled == mark then
  return 'settled'
end
if not is_held(job, worker, fence) then
  if job.lane then
    count('lease_lost', job.lane)
  end
  return 'lost'
end
redis.call('HSET', key('job', id), 'settled', mark)
if job.state == 'cancelling' then
  finish(id, job, 'cancelled', tonumber(ARGV[6]))
  drop_entry(job.lane, job.entry)
  return 'settled'
end
if verb == 'released' then
  job.attempts = redis.call('HINCRBY', key('job', id), 'attempts', -1)
else
  redis.call('HSET', key('job', id), 'last_error', string.sub(ARGV[7], 1, DEAD_TEXT_MAX))
end
redis.call('HDEL', key('job', id), 'owner', 'progress', 'progress_ms')
redis.call('HSET', key('job', id), 'queued_at', seconds(now_ms()), 'entry', add_entry(job.lane, id))
enter(id, job, 'queued')
drop_entry(job.lane, job.entry)
count(verb, job.lane)
return 'settled'
