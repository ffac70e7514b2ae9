-- Ends the lease of a part: it is done. The last one queues its video, to be joined. Repeating it changes nothing.
-- Keys: job:{id}, job:{video}, events:{video}, work:{lane}, void:{lane}, blob:{name}, workers, counters, load, speed.
-- ARGV: 2 worker, 3 id, 4 fence, 5 outcome as JSON, 6 its blobs, a blank between, 7 its pixels.
-- Returns 'settled' or 'lost'.
local worker, id, fence = ARGV[2], ARGV[3], ARGV[4]
local part, verdict = settling(id, worker, fence, 'succeeded')
if not part then
  return verdict
end
local video = video_of(id)
local frames, pixels = cjson.decode(part.part).frames, tonumber(ARGV[7])
local run_s = now_ms() / 1000 - tonumber(part.claimed_at)
for name in string.gmatch(ARGV[6], '%S+') do
  redis.call('SADD', key('blob', name), id)
end
redis.call('HSET', key('job', id), 'state', 'succeeded', 'outcome', ARGV[5], 'blobs', ARGV[6], 'done', frames)
redis.call('HDEL', key('job', id), 'owner', 'entry')
drop_entry(PART_LANE, part.entry)
count('succeeded', PART_LANE)
count('run_seconds', PART_LANE, seconds(run_s * 1000))

redis.call('HINCRBY', key('job', video), 'frames_done', frames - tonumber(part.done or 0))
redis.call('HINCRBY', key('job', video), 'parts_done', 1)
redis.call('HINCRBY', key('job', video), 'pixels_left', whole(-pixels))
local job = read_job(video)
add_load(job.lane, -pixels)
note_speed(job.lane, pixels, run_s)
queue_parts(video, job)
if tonumber(job.parts_done) == tonumber(job.parts) then
  queue_join(video, job)
end
return 'settled'
