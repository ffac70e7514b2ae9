-- Forgets a final job.
-- Keys: job:{id}, jobs, jobs:{state}, events:{id}, blob:{name}, expiring, dead. ARGV: 2 id.
-- Returns {'removed', blobs that no other job uses...}, {'missing'} or {'active', state}.
local job = read_job(ARGV[2])
if not job.state then
  return {'missing'}
end
if not FINAL[job.state] then
  return {'active', job.state}
end
local answer = {'removed'}
drop_blobs(ARGV[2], job, answer)
forget(ARGV[2], job)
return answer
