-- Helpers that every script begins with. ARGV[1] is the prefix of all keys; keys.py has the table of them.
-- Keys touched here: job:{id}, jobs, jobs:{state}, events:{id}, work:{lane}, void:{lane}, blob:{name},
-- owners, expiring, dead, counters, load, speed, workers, hooks, hook:{id}, hooks:dead.
local PREFIX = ARGV[1]
local GROUP = 'workers'
local PART_LANE, JOIN_LANE = 'video.part', 'video.join'
local EVENTS_KEPT = 256
local DEAD_TEXT_MAX = 2000
local FINAL = {succeeded = true, failed = true, cancelled = true, expired = true}

local function key(kind, name)
  return PREFIX .. kind .. ':' .. name
end

-- The server's clock, in milliseconds: the only one that all workers share.
local function now_ms()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

local function seconds(ms)
  return string.format('%.3f', ms / 1000)
end

local function read_hash(name)
  local flat, fields = redis.call('HGETALL', name), {}
  for i = 1, #flat, 2 do
    fields[flat[i]] = flat[i + 1]
  end
  return fields
end

local function read_job(id)
  return read_hash(key('job', id))
end

local function count(name, lane, by)
  redis.call('HINCRBYFLOAT', PREFIX .. 'counters', name .. ':' .. lane, by or 1)
end

-- A part of a video is a job too, `{video}.{number}`. It stands in no index, and its story is told by the video's.
local function video_of(id)
  return string.match(id, '^(%x+)%.%d+$')
end

local function publish(id, event, data)
  redis.call('XADD', key('events', id), 'MAXLEN', '~', EVENTS_KEPT, '*', 'event', event, 'data', data)
end

-- Endings of the indexes that a job stands in: that of all jobs, and its owner's. Asked by id, not of the record: the
-- indexes outlive it.
local function indexes_of(id)
  local owner = redis.call('HGET', PREFIX .. 'owners', id)
  return owner and {'', '@' .. owner} or {''}
end

-- Moves a job to a state: record, indexes and the event together.
local function enter(id, job, state, attempts)
  if video_of(id) then
    redis.call('HSET', key('job', id), 'state', state)
    job.state = state
    return
  end
  for _, whose in ipairs(indexes_of(id)) do
    if job.state then
      redis.call('ZREM', key('jobs', job.state) .. whose, id)
    end
    redis.call('ZADD', PREFIX .. 'jobs' .. whose, 0, id)
    redis.call('ZADD', key('jobs', state) .. whose, 0, id)
  end
  redis.call('HSET', key('job', id), 'state', state)
  publish(id, 'state', cjson.encode({
    state = state, attempts = math.max(tonumber(attempts or job.attempts or 0), tonumber(job.worst or 0))}))
  job.state = state
end

-- At 0, not at $: jobs put before the first worker came are work too.
local function ensure_group(lane)
  if redis.call('EXISTS', key('work', lane)) == 0 then
    redis.call('XGROUP', 'CREATE', key('work', lane), GROUP, '0', 'MKSTREAM')
  end
end

-- `compat` tells a worker, before it reads the job, which others of the lane could share an engine call with it.
local function add_entry(lane, id, compat)
  ensure_group(lane)
  return redis.call('XADD', key('work', lane), '*', 'job', id, 'compat', compat or '')
end

-- Jobs waiting plus jobs running. The stream holds entries of cancelled jobs too, until a worker skips them.
local function wanted_entries(lane)
  return redis.call('XLEN', key('work', lane)) - redis.call('SCARD', key('void', lane))
end

-- Those, and the videos whose parts are being done: they have no entry in their lane.
local function unfinished_jobs(lane)
  return wanted_entries(lane) + redis.call('SCARD', key('divided', lane))
end

-- The stream that a job's entry is on: its own lane's, but for videos that wait to be joined.
local function lane_of(job)
  return job.entry_lane or job.lane
end

-- Acknowledged and deleted together, so that the stream's length stays jobs waiting, running, and void.
local function drop_entry(lane, entry)
  redis.call('XACK', key('work', lane), GROUP, entry)
  redis.call('XDEL', key('work', lane), entry)
  redis.call('SREM', key('void', lane), entry)
end

local function is_pending_at(lane, entry, worker)
  return #redis.call('XPENDING', key('work', lane), GROUP, entry, entry, 1, worker) == 1
end

-- Whether the lease of this worker and fence is the one in force.
local function is_held(job, worker, fence)
  return (job.state == 'running' or job.state == 'cancelling') and job.owner == worker and job.fence == fence
end

-- As the server takes integers: it refuses the -0 that negating 0 gives.
local function whole(number)
  return string.format('%d', tonumber(number) + 0)
end

-- Pixels that a lane has accepted and not seen the end of. Never below 0, whatever was lost on the way.
local function add_load(lane, pixels)
  if redis.call('HINCRBY', PREFIX .. 'load', lane, whole(pixels)) < 0 then
    redis.call('HSET', PREFIX .. 'load', lane, 0)
  end
end

-- Pixels per second that one slot of a worker does, lately: each lease weighs a fifth.
local function note_speed(lane, pixels, run_s)
  if pixels > 0 and run_s > 0 then
    local before = tonumber(redis.call('HGET', PREFIX .. 'speed', lane) or pixels / run_s)
    redis.call('HSET', PREFIX .. 'speed', lane, string.format('%.1f', before + (pixels / run_s - before) / 5))
  end
end

-- Ends the job's use of its blobs; those that no other job uses go to the end of `unused`.
local function drop_blobs(id, job, unused)
  for name in string.gmatch(job.blobs or '', '%S+') do
    redis.call('SREM', key('blob', name), id)
    if redis.call('EXISTS', key('blob', name)) == 0 then
      table.insert(unused, name)
    end
  end
  redis.call('HDEL', key('job', id), 'blobs')
end

-- Puts more of a video's parts into their lane: twice as many as there are workers, so that all have work and the parts
-- of several videos take turns. Those that were done before the video failed and was replayed stay done.
local function queue_parts(id, job)
  local ahead = math.max(4, 2 * redis.call('ZCARD', PREFIX .. 'workers'))
  local queued, done = tonumber(job.parts_queued), tonumber(job.parts_done)
  while queued < tonumber(job.parts) and queued - done < ahead do
    local part = id .. '.' .. queued
    if redis.call('HGET', key('job', part), 'state') == 'planned' then
      redis.call('HSET', key('job', part), 'state', 'queued', 'queued_at', seconds(now_ms()),
        'entry', add_entry(PART_LANE, part, job.compat))
      count('accepted', PART_LANE)
    end
    queued = queued + 1
  end
  redis.call('HSET', key('job', id), 'parts_queued', queued)
end

-- All parts of a video are done. It waits on a stream of its own, before all that is still to be begun: joining is little
-- work, and much is kept until it is done.
local function queue_join(id, job)
  redis.call('HSET', key('job', id), 'queued_at', seconds(now_ms()), 'entry_lane', JOIN_LANE,
    'entry', add_entry(JOIN_LANE, id, job.compat))
end

-- Takes a part out of its lane, whether it waits there or a worker has it.
local function withdraw_part(part)
  if part.state == 'queued' then
    redis.call('SADD', key('void', PART_LANE), part.entry)
  elseif part.state == 'running' then
    drop_entry(PART_LANE, part.entry)
  end
end

-- Forgets the parts of a video. Their blobs, which the joined result has made useless, are the janitor's to find.
local function drop_parts(id, job)
  for number = 0, tonumber(job.parts) - 1 do
    local name = id .. '.' .. number
    local part = read_job(name)
    withdraw_part(part)
    drop_blobs(name, part, {})
    redis.call('DEL', key('job', name))
  end
  redis.call('SREM', key('divided', job.lane), id)
  redis.call('HDEL', key('job', id), 'parts', 'parts_queued', 'parts_done', 'frames_done', 'frames_total', 'frames_kept',
    'divided_at', 'entry_lane')
end

-- Keeps the parts of a failed video that are done, for when it is replayed; the others are as if never begun.
local function halt_parts(id, job)
  local frames = 0
  for number = 0, tonumber(job.parts) - 1 do
    local name = id .. '.' .. number
    local part = read_job(name)
    if part.state == 'succeeded' then
      frames = frames + tonumber(part.done)
    else
      withdraw_part(part)
      redis.call('HDEL', key('job', name), 'owner', 'entry', 'claim', 'claimed_at', 'started_at', 'done', 'last_error', 'settled')
      redis.call('HSET', key('job', name), 'state', 'planned', 'attempts', 0)
    end
  end
  redis.call('SREM', key('divided', job.lane), id)
  redis.call('HDEL', key('job', id), 'entry', 'entry_lane')
  redis.call('HSET', key('job', id), 'frames_done', frames)
end

-- Puts the news of a final state into the outbox, where the job wants it told. A copy of the record goes with it: by the
-- time it is sent, the job may be replayed or removed.
local function post(id, job)
  local url = job.job and cjson.decode(job.job).webhook
  if url and url ~= cjson.null then
    local hook = id .. '.' .. redis.call('HINCRBY', key('job', id), 'hooks', 1)
    redis.call('HSET', key('hook', hook), 'job', id, 'lane', job.lane, 'record', cjson.encode(read_job(id)), 'attempts', 0,
      'entry', redis.call('XADD', PREFIX .. 'hooks', '*', 'hook', hook))
    count('webhooks_posted', job.lane)
  end
end

local function drop_hook_entry(entry)
  redis.call('XACK', PREFIX .. 'hooks', GROUP, entry)
  redis.call('XDEL', PREFIX .. 'hooks', entry)
end

local function bury_hook(id, hook, reason, kept)
  redis.call('XADD', PREFIX .. 'hooks:dead', 'MAXLEN', '~', kept, '*', 'hook', id, 'job', hook.job, 'attempts', hook.attempts,
    'reason', string.sub(reason, 1, DEAD_TEXT_MAX))
  redis.call('DEL', key('hook', id))
  drop_hook_entry(hook.entry)
  count('webhooks_dead', hook.lane)
end

-- Gives a job its final state and the time its result may stay. The entry on the work stream is the caller's to drop.
local function finish(id, job, state, result_ttl_ms)
  local ms = now_ms()
  enter(id, job, state)
  redis.call('HSET', key('job', id), 'finished_at', seconds(ms), 'expires_at', seconds(ms + result_ttl_ms))
  redis.call('HDEL', key('job', id), 'owner')
  redis.call('ZADD', PREFIX .. 'expiring', seconds(ms + result_ttl_ms), id)
  count(state, job.lane)
  local run_s = job.claimed_at and ms / 1000 - tonumber(job.claimed_at) or 0
  if run_s > 0 then
    count('run_seconds', job.lane, seconds(run_s * 1000))
  end
  add_load(job.lane, -tonumber(job.pixels_left or 0))
  redis.call('HDEL', key('job', id), 'pixels_left')
  if job.parts and state == 'failed' and tonumber(job.parts_done) > 0 then
    halt_parts(id, job)
  elseif job.parts then
    drop_parts(id, job)
  elseif state == 'succeeded' then
    note_speed(job.lane, tonumber(job.pixels or 0), run_s)
  end
  post(id, job)
end

local function bury(id, job, problem, reason, worker)
  local letter = redis.call('XADD', PREFIX .. 'dead', '*', 'job', id, 'lane', job.lane, 'worker', worker,
    'attempts', job.attempts or '0', 'reason', string.sub(reason, 1, DEAD_TEXT_MAX))
  redis.call('HSET', key('job', id), 'error', problem, 'dead', letter)
  count('dead_lettered', job.lane)
end

-- Gives a part up, and the video with it.
local function bury_part(id, problem, reason, worker, result_ttl_ms)
  local video = video_of(id)
  local job = read_job(video)
  job.claimed_at, job.attempts = nil, job.worst
  bury(video, job, problem, 'part ' .. string.match(id, '%d+$') .. ': ' .. reason, worker)
  finish(video, job, 'failed', result_ttl_ms)
end

-- The lease's job, or nil where worker and fence no longer hold it; 'settled' where this very settling was done before.
local function settling(id, worker, fence, verb)
  local job = read_job(id)
  local mark = fence .. ':' .. verb
  if job.settled == mark then
    return nil, 'settled'
  end
  if not is_held(job, worker, fence) then
    if job.lane then
      count('lease_lost', job.lane)
    end
    return nil, 'lost'
  end
  redis.call('HSET', key('job', id), 'settled', mark)
  return job
end

local function forget(id, job)
  if job.parts then
    drop_parts(id, job)
  end
  redis.call('DEL', key('job', id), key('events', id))
  redis.call('ZREM', PREFIX .. 'expiring', id)
  for _, whose in ipairs(indexes_of(id)) do
    redis.call('ZREM', PREFIX .. 'jobs' .. whose, id)
    for _, state in ipairs({'queued', 'running', 'cancelling', 'succeeded', 'failed', 'cancelled', 'expired'}) do
      redis.call('ZREM', key('jobs', state) .. whose, id)
    end
  end
  redis.call('HDEL', PREFIX .. 'owners', id)
  if job.dead then
    redis.call('XDEL', PREFIX .. 'dead', job.dead)
  end
end

