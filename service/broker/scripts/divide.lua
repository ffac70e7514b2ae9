-- Ends the lease of a video by dividing it: its parts are queued, it is joined when the last is done. Repeatable.
-- Keys: job:{id}, job:{id}.{number}, events:{id}, work:{lane}, void:{lane}, divided:{lane}, workers, counters, load.
-- ARGV: 2 worker, 3 id, 4 fence, 5 frames in all, 6 pixels in all, 7... parts as JSON.
-- Returns 'settled', 'lost', or 'cancelling' where it is not wanted any more and the lease goes on.
local worker, id, fence = ARGV[2], ARGV[3], ARGV[4]
local held = redis.call('HMGET', key('job', id), 'state', 'owner', 'fence')
if held[1] == 'cancelling' and is_held({state = held[1], owner = held[2], fence = held[3]}, worker, fence) then
  return 'cancelling'
end
local job, verdict = settling(id, worker, fence, 'divided')
if not job then
  return verdict
end
for i = 7, #ARGV do
  redis.call('HSET', key('job', id .. '.' .. (i - 7)), 'part', ARGV[i], 'lane', PART_LANE, 'attempts', 0, 'fence', 0,
    'compat', job.compat or '', 'state', 'planned')
end
job.parts, job.parts_queued, job.parts_done = #ARGV - 6, 0, 0
-- The attempts of each step count by themselves; what is shown is the worst of them.
redis.call('HSET', key('job', id), 'parts', job.parts, 'parts_done', 0, 'frames_done', 0, 'frames_total', ARGV[5],
  'divided_at', seconds(now_ms()), 'worst', job.attempts, 'attempts', 0, 'pixels', ARGV[6], 'pixels_left', ARGV[6])
redis.call('HDEL', key('job', id), 'owner', 'entry')
redis.call('SADD', key('divided', job.lane), id)
add_load(job.lane, tonumber(ARGV[6]) - tonumber(job.pixels_left or 0))
queue_parts(id, job)
drop_entry(job.lane, job.entry)
return 'settled'
