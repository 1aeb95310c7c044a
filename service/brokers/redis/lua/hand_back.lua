-- Returns jobs undrawn, at the end of their lines.
-- ARGV: for each delivery id, number, queue, entry

local num_jobs = 0
for index = 1, #ARGV, 4 do
  local id, number, queue, entry = ARGV[index], ARGV[index + 1], ARGV[index + 2], ARGV[index + 3]
  local key = job_key(id)
  local kept = redis.call('HMGET', key, 'state', 'delivery')
  if kept[1] == 'running' and kept[2] == number then
    redis.call('HINCRBY', key, 'attempts', -1)
    redis.call('HSET', key, 'state', 'queued')
    redis.call('HDEL', key, 'entry')
    drop_entry(queue, entry)
    add_entry(queue, id)
    num_jobs = num_jobs + 1
  end
end
if num_jobs > 0 then
  wake_for(num_jobs)
end
return 0
