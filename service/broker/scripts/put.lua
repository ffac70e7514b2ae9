-- Takes a job in. Repeating it changes nothing.
-- Keys: job:{id}, jobs, jobs:queued, events:{id}, work:{lane}, void:{lane}, blob:{name}, idem:{hash}, counters,
--       load, divided:{lane}, owners.
-- ARGV: 2 id, 3 lane, 4 job as JSON, 5 most entries in a lane, 6 hash of the idempotency key or '', 7 its fingerprint,
--       8 how long the key is remembered (s), 9 compatibility key, 10 pixels in all, 11 owner or '', 12... blobs.
-- Returns {'stored', id}, {'conflict', id} or {'full', length}.
local id, lane, idem = ARGV[2], ARGV[3], ARGV[6]
if redis.call('EXISTS', key('job', id)) == 1 then
  return {'stored', id}
end
if idem ~= '' then
  local known = redis.call('HMGET', key('idem', idem), 'job', 'fingerprint')
  if known[1] and redis.call('EXISTS', key('job', known[1])) == 1 then
    return {known[2] == ARGV[7] and 'stored' or 'conflict', known[1]}
  end
end
local length = unfinished_jobs(lane)
if length >= tonumber(ARGV[5]) then
  return {'full', tostring(length)}
end
local blobs = {}
for i = 12, #ARGV do
  redis.call('SADD', key('blob', ARGV[i]), id)
  table.insert(blobs, ARGV[i])
end
redis.call('HSET', key('job', id), 'job', ARGV[4], 'lane', lane, 'blobs', table.concat(blobs, ' '), 'attempts', 0,
  'fence', 0, 'queued_at', seconds(now_ms()), 'compat', ARGV[9], 'pixels', ARGV[10], 'pixels_left', ARGV[10],
  'entry', add_entry(lane, id, ARGV[9]))
add_load(lane, ARGV[10])
if ARGV[11] ~= '' then
  redis.call('HSET', PREFIX .. 'owners', id, ARGV[11])
end
enter(id, {}, 'queued')
if idem ~= '' then
  redis.call('HSET', key('idem', idem), 'job', id, 'fingerprint', ARGV[7])
  redis.call('EXPIRE', key('idem', idem), ARGV[8])
end
count('accepted', lane)
return {'stored', id}
