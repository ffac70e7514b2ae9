-- Ends the lease of a part, or of a video to be joined: the parts do not fit, and the video is queued to be done as one.
-- Keys: job:{id}, job:{video}, jobs, jobs:{state}, events:{video}, work:{lane}, void:{lane}, blob:{name}, counters, load,
--       divided:{lane}.
-- ARGV: 2 worker, 3 id, 4 fence, 5 result's time to live (ms).
-- Returns 'settled' or 'lost'.
local id = ARGV[3]
local leased, verdict = settling(id, ARGV[2], ARGV[4], 'undivided')
if not leased then
  return verdict
end
local video = video_of(id) or id
local job = read_job(video)
if video == id then
  drop_entry(lane_of(job), job.entry)
end
if job.state == 'cancelling' then
  finish(video, job, 'cancelled', tonumber(ARGV[5]))
  return 'settled'
end
if job.parts then
  drop_parts(video, job)
end
job.attempts = 0
redis.call('HDEL', key('job', video), 'owner', 'progress', 'progress_ms')
redis.call('HSET', key('job', video), 'whole', 1, 'attempts', 0, 'queued_at', seconds(now_ms()),
  'entry', add_entry(job.lane, video, job.compat), 'pixels_left', job.pixels)
add_load(job.lane, tonumber(job.pixels) - tonumber(job.pixels_left))
enter(video, job, 'queued')
return 'settled'
