-- Keeps a worker's leases.
-- ARGV: worker; then for each delivery id, number, queue, entry
-- -> ids that are not this worker's to draw any more

local worker, gone = ARGV[1], {}
redis.call('ZADD', P .. 'workers', now(), worker)
for index = 2, #ARGV, 4 do
  local id, number, queue, entry = ARGV[index], ARGV[index + 1], ARGV[index + 2], ARGV[index + 3]
  local kept = redis.call('HMGET', job_key(id), 'state', 'delivery')
  if kept[1] == 'running' and kept[2] == number then
    redis.call('XCLAIM', queue, GROUP, worker, 0, entry, 'JUSTID')
  else
    gone[#gone + 1] = id
  end
end
return gone
