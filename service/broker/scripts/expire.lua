-- Ends the results, and later the records, of jobs whose time has come. One that succeeded is expired from then on; the
-- others had no result, and keep their state.
-- Keys: expiring, job:{id}, jobs, jobs:{state}, events:{id}, blob:{name}, dead, counters.
-- ARGV: 2 how long a record outlives its result (ms), 3 most jobs at once.
-- Returns {jobs dealt with, blobs that no job uses any more...}.
local ms = now_ms()
local due = redis.call('ZRANGEBYSCORE', PREFIX .. 'expiring', '-inf', seconds(ms), 'LIMIT', 0, ARGV[3])
local answer = {#due}
for _, id in ipairs(due) do
  local job = read_job(id)
  if not job.state or not job.blobs then
    -- Here for the second time.
    forget(id, job)
  else
    drop_blobs(id, job, answer)
    if job.parts then
      drop_parts(id, job)
    end
    redis.call('HDEL', key('job', id), 'preview')
    if job.state == 'succeeded' then
      enter(id, job, 'expired')
      count('expired', job.lane)
    end
    -- Redis drops the record by itself; the score brings the next sweep back to drop the indexes too.
    redis.call('PEXPIRE', key('job', id), ARGV[2])
    redis.call('PEXPIRE', key('events', id), ARGV[2])
    redis.call('ZADD', PREFIX .. 'expiring', seconds(ms + tonumber(ARGV[2])), id)
    if job.dead then
      redis.call('XDEL', PREFIX .. 'dead', job.dead)
    end
  end
end
return answer
