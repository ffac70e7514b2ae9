-- Notes a picture of how the result will look.
-- Keys: job:{id}, blob:{name}, events:{id}. ARGV: 2 worker, 3 id, 4 fence, 5 preview as JSON, 6 its blob.
-- Returns 'held', 'cancelling' or 'lost'.
local id = ARGV[3]
local job = read_job(id)
if not is_held(job, ARGV[2], ARGV[4]) then
  return 'lost'
end
if job.state == 'running' then
  if not job.preview then
    redis.call('SADD', key('blob', ARGV[6]), id)
    redis.call('HSET', key('job', id), 'preview', ARGV[5], 'blobs', (job.blobs or '') .. ' ' .. ARGV[6])
    publish(id, 'preview', cjson.encode({url = '/jobs/' .. id .. '/preview'}))
  end
  return 'held'
end
return 'cancelling'
