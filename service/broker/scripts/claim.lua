-- Makes a lease of an entry that the worker has been given, or clears the entry away.
-- Keys: work:{lane}, void:{lane}, job:{id}, jobs, jobs:{state}, events:{id}, expiring, dead, counters.
-- ARGV: 2 worker, 3 lane, 4 entry, 5 id, 6 most attempts, 7 result's time to live (ms), 8 problem if there were too many,
--       9 token of this claim: repeating it changes nothing.
-- Returns {'skipped'}, or {'claimed', fence, attempt, seconds waited, job as JSON, part as JSON or '', parts to join,
--          1 if it must not be divided}.
local worker, lane, entry, id = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
-- The entry may have lain here so long that another worker took it over, or its owner proved alive and took it back.
if not is_pending_at(lane, entry, worker) then
  return {'skipped'}
end
local job = read_job(id)
local video = video_of(id)
local asked = video and redis.call('HGET', key('job', video), 'job') or job.job
if not job.state or FINAL[job.state] or job.entry ~= entry then
  drop_entry(lane, entry)
  return {'skipped'}
end
if job.state == 'cancelling' then
  -- Its worker died before it could stop.
  finish(id, job, 'cancelled', tonumber(ARGV[7]))
  drop_entry(lane, entry)
  return {'skipped'}
end
if job.claim == ARGV[9] then
  return {'claimed', tonumber(job.fence), tonumber(job.attempts), '0', asked, job.part or '', tonumber(job.parts or 0),
    tonumber(job.whole or 0)}
end
if tonumber(job.attempts) >= tonumber(ARGV[6]) then
  local reason = job.last_error or 'the worker was lost at every attempt'
  if video then
    bury_part(id, ARGV[8], reason, job.owner or worker, tonumber(ARGV[7]))
  else
    bury(id, job, ARGV[8], reason, job.owner or worker)
    finish(id, job, 'failed', tonumber(ARGV[7]))
  end
  drop_entry(lane, entry)
  return {'skipped'}
end
local ms = now_ms()
local waited = seconds(math.max(0, ms - tonumber(job.queued_at) * 1000))
local attempt = redis.call('HINCRBY', key('job', id), 'attempts', 1)
local fence = redis.call('HINCRBY', key('job', id), 'fence', 1)
redis.call('HSET', key('job', id), 'owner', worker, 'claim', ARGV[9], 'claimed_at', seconds(ms))
redis.call('HSETNX', key('job', id), 'started_at', seconds(ms))
redis.call('XCLAIM', key('work', lane), GROUP, worker, 0, entry, 'JUSTID')
enter(id, job, 'running', attempt)
count('claimed', lane)
count('wait_seconds', lane, waited)
if attempt > 1 then
  count('redelivered', lane)
end
if video then
  -- The video has been tried as often as its most tried part.
  local worst = tonumber(redis.call('HGET', key('job', video), 'worst') or 1)
  if attempt > worst then
    redis.call('HSET', key('job', video), 'worst', attempt)
  end
  -- What the last worker had done of it is done again.
  redis.call('HINCRBY', key('job', video), 'frames_done', whole(-tonumber(job.done or 0)))
  redis.call('HDEL', key('job', id), 'done')
end
return {'claimed', fence, attempt, waited, asked, job.part or '', tonumber(job.parts or 0), tonumber(job.whole or 0)}
