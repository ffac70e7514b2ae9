-- Helpers that every script begins with. ARGV[1] is the prefix of all keys; keys.py has the table of them.
-- Keys touched here: job:{id}, jobs, jobs:{state}, events:{id}, work:{lane}, void:{lane}, blob:{name},
-- expiring, dead, counters.
local PREFIX = ARGV[1]
local GROUP = 'workers'
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

local function read_job(id)
  local flat, job = redis.call('HGETALL', key('job', id)), {}
  for i = 1, #flat, 2 do
    job[flat[i]] = flat[i + 1]
  end
  return job
end

local function count(name, lane, by)
  redis.call('HINCRBYFLOAT', PREFIX .. 'counters', name .. ':' .. lane, by or 1)
end

local function publish(id, event, data)
  redis.call('XADD', key('events', id), 'MAXLEN', '~', EVENTS_KEPT, '*', 'event', event, 'data', data)
end

-- Moves a job to a state: record, both indexes and the event together.
local function enter(id, job, state, attempts)
  if job.state then
    redis.call('ZREM', key('jobs', job.state), id)
  end
  redis.call('ZADD', PREFIX .. 'jobs', 0, id)
  redis.call('ZADD', key('jobs', state), 0, id)
  redis.call('HSET', key('job', id), 'state', state)
  publish(id, 'state', cjson.encode({state = state, attempts = tonumber(attempts or job.attempts or 0)}))
  job.state = state
end

-- At 0, not at $: jobs put before the first worker came are work too.
local function ensure_group(lane)
  if redis.call('EXISTS', key('work', lane)) == 0 then
    redis.call('XGROUP', 'CREATE', key('work', lane), GROUP, '0', 'MKSTREAM')
  end
end

local function add_entry(lane, id)
  ensure_group(lane)
  return redis.call('XADD', key('work', lane), '*', 'job', id)
end

-- Jobs waiting plus jobs running. The stream holds entries of cancelled jobs too, until a worker skips them.
local function wanted_entries(lane)
  return redis.call('XLEN', key('work', lane)) - redis.call('SCARD', key('void', lane))
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

-- Gives a job its final state and the time its result may stay. The entry on the work stream is the caller's to drop.
local function finish(id, job, state, result_ttl_ms)
  local ms = now_ms()
  enter(id, job, state)
  redis.call('HSET', key('job', id), 'finished_at', seconds(ms), 'expires_at', seconds(ms + result_ttl_ms))
  redis.call('HDEL', key('job', id), 'owner')
  redis.call('ZADD', PREFIX .. 'expiring', seconds(ms + result_ttl_ms), id)
  count(state, job.lane)
  if job.claimed_at then
    count('run_seconds', job.lane, seconds(ms - tonumber(job.claimed_at) * 1000))
  end
end

local function bury(id, job, problem, reason, worker)
  local letter = redis.call('XADD', PREFIX .. 'dead', '*', 'job', id, 'lane', job.lane, 'worker', worker,
    'attempts', job.attempts or '0', 'reason', string.sub(reason, 1, DEAD_TEXT_MAX))
  redis.call('HSET', key('job', id), 'error', problem, 'dead', letter)
  count('dead_lettered', job.lane)
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

local function forget(id, job)
  redis.call('DEL', key('job', id), key('events', id))
  redis.call('ZREM', PREFIX .. 'jobs', id)
  redis.call('ZREM', PREFIX .. 'expiring', id)
  for _, state in ipairs({'queued', 'running', 'cancelling', 'succeeded', 'failed', 'cancelled', 'expired'}) do
    redis.call('ZREM', key('jobs', state), id)
  end
  if job.dead then
    redis.call('XDEL', PREFIX .. 'dead', job.dead)
  end
end

