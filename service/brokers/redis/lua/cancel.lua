-- Ends open jobs.
-- ARGV: id ...
-- -> how many of them no worker had taken

local num_queued = 0
for _, id in ipairs(ARGV) do
  local state = redis.call('HGET', job_key(id), 'state')
  if is_open(state) then
    if state == 'queued' then
      num_queued = num_queued + 1
    end
    end_job(id, 'cancelled', 'reason', 'cancelled')
  end
end
return num_queued
