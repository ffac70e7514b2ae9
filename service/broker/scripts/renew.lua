-- Keeps leases in force, and tells of each how it stands.
-- Keys: job:{id}, work:{lane}. ARGV: 2 worker, then id and fence by turns.
-- Returns 'held', 'cancelling' or 'lost' for each.
local worker, verdicts = ARGV[2], {}
for i = 3, #ARGV, 2 do
  local f = redis.call('HMGET', key('job', ARGV[i]), 'state', 'owner', 'fence', 'lane', 'entry', 'entry_lane')
  local job = {state = f[1], owner = f[2], fence = f[3]}
  if is_held(job, worker, ARGV[i + 1]) then
    -- Behind the check above: by itself XCLAIM would steal the entry back from a new owner. JUSTID renews and counts nothing.
    redis.call('XCLAIM', key('work', f[6] or f[4]), GROUP, worker, 0, f[5], 'JUSTID')
    table.insert(verdicts, job.state == 'running' and 'held' or 'cancelling')
  else
    table.insert(verdicts, 'lost')
  end
end
return verdicts
