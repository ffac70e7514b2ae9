-- Ends a lease and its job with it. Repeating it changes nothing.
-- Keys: job:{id}, jobs, jobs:{state}, events:{id}, work:{lane}, void:{lane}, blob:{name}, expiring, dead, counters, load,
--       speed.
-- ARGV: 2 worker, 3 id, 4 fence, 5 state, 6 result's time to live (ms), 7 outcome as JSON or '', 8 result's blobs, a blank between, or '',
--       9 problem as JSON or '', 10 reason for the dead letters.
-- Returns 'settled' or 'lost'.
local worker, id, fence, state = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local job, verdict = settling(id, worker, fence, state)
if not job then
  return verdict
end
if video_of(id) and state == 'failed' then
  bury_part(id, ARGV[9], ARGV[10], worker, tonumber(ARGV[6]))
  return 'settled'
end
if ARGV[7] ~= '' then
  for name in string.gmatch(ARGV[8], '%S+') do
    redis.call('SADD', key('blob', name), id)
  end
  redis.call('HSET', key('job', id), 'outcome', ARGV[7], 'blobs', (job.blobs or '') .. ' ' .. ARGV[8])
end
if ARGV[9] ~= '' then
  bury(id, job, ARGV[9], ARGV[10], worker)
end
finish(id, job, state, tonumber(ARGV[6]))
drop_entry(lane_of(job), job.entry)
return 'settled'
