-- Ends a lease and its job with it. Repeating it changes nothing.
-- Keys: job:{id}, jobs, jobs:{state}, events:{id}, work:{lane}, void:{lane}, blob:{name}, expiring, dead, counters.
-- ARGV: 2 worker, 3 id, 4 fence, 5 state, 6 result's time to live (ms), 7 outcome as JSON or '', 8 result's blob or '',
--       9 problem as JSON or '', 10 reason for the dead letters.
-- Returns 'settled' or 'lost'.
local worker, id, fence, state = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local job = read_job(id)
local mark = fence .. ':' .. state
if job.settled == mark then
  return 'settled'
end
if not is_held(job, worker, fence) then
  if job.lane then
    count('lease_lost', job.lane)
  end
  return 'lost'
end
if ARGV[7] ~= '' then
  redis.call('SADD', key('blob', ARGV[8]), id)
  redis.call('HSET', key('job', id), 'outcome', ARGV[7], 'blobs', (job.blobs or '') .. ' ' .. ARGV[8])
end
if ARGV[9] ~= '' then
  bury(id, job, ARGV[9], ARGV[10], worker)
end
redis.call('HSET', key('job', id), 'settled', mark)
finish(id, job, state, tonumber(ARGV[6]))
drop_entry(job.lane, job.entry)
return 'settled'
