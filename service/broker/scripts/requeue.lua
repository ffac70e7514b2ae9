-- Ends a lease and puts its job back in the lane; one that nobody wants any more is cancelled instead. Repeatable.
-- Keys: job:{id}, jobs, jobs:{state}, events:{id}, work:{lane}, void:{lane}, expiring, counters, load.
-- ARGV: 2 worker, 3 id, 4 fence, 5 'retried' or 'released' (the attempt does not count), 6 result's time to live (ms),
--       7 what went wrong or ''.
-- Returns 'settled' or 'lost'.
local worker, id, fence, verb = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local job, verdict = settling(id, worker, fence, verb)
if not job then
  return verdict
end
if job.state == 'cancelling' then
  finish(id, job, 'cancelled', tonumber(ARGV[6]))
  drop_entry(lane_of(job), job.entry)
  return 'settled'
end
if verb == 'released' then
  job.attempts = redis.call('HINCRBY', key('job', id), 'attempts', -1)
else
  redis.call('HSET', key('job', id), 'last_error', string.sub(ARGV[7], 1, DEAD_TEXT_MAX))
end
redis.call('HDEL', key('job', id), 'owner')
redis.call('HSET', key('job', id), 'queued_at', seconds(now_ms()), 'entry', add_entry(lane_of(job), id, job.compat))
if not job.parts then  -- a video that is to be joined goes on running, at the end of its progress
  redis.call('HDEL', key('job', id), 'progress', 'progress_ms')
  enter(id, job, 'queued')
end
drop_entry(lane_of(job), job.entry)
count(verb, job.lane)
return 'settled'
