-- Notes that a job is not wanted. One that waits is over at once; its entry stays for a worker to skip, because deleting
-- undelivered entries would make the group's lag unknown.
-- Keys: job:{id}, jobs, jobs:{state}, events:{id}, void:{lane}, expiring, counters. ARGV: 2 id, 3 result's time to live (ms).
-- Returns the state, or '' where there is no such job.
local job = read_job(ARGV[2])
if job.state == 'queued' then
  job.claimed_at = nil
  redis.call('SADD', key('void', job.lane), job.entry)
  finish(ARGV[2], job, 'cancelled', tonumber(ARGV[3]))
elseif job.state == 'running' and job.parts and not job.owner then
  -- Its parts are with their workers, or it waits to be joined; they learn of it when they next report.
  if job.entry then
    redis.call('SADD', key('void', lane_of(job)), job.entry)
  end
  job.claimed_at = nil
  finish(ARGV[2], job, 'cancelled', tonumber(ARGV[3]))
elseif job.state == 'running' then
  enter(ARGV[2], job, 'cancelling')
end
return job.state or ''
