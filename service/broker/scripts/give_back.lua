-- Puts an entry that was delivered but never claimed back in its lane, for another worker.
-- Keys: work:{lane}, void:{lane}, job:{id}. ARGV: 2 worker, 3 lane, 4 entry, 5 id.
local worker, lane, entry, id = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
if is_pending_at(lane, entry, worker) then
  local job = read_job(id)
  if job.entry == entry and not FINAL[job.state] then
    redis.call('HSET', key('job', id), 'entry', add_entry(lane, id, job.compat))
  end
  drop_entry(lane, entry)
end
return 1
