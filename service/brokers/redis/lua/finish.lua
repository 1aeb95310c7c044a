-- Gives a job its outcome, if this is its latest delivery.
-- ARGV: id, number, state, reason, outcome, image, keep_s
-- -> 1, or 0 where the outcome came too late

local id, number, state = ARGV[1], ARGV[2], ARGV[3]
local kept = redis.call('HMGET', job_key(id), 'state', 'delivery')
if kept[1] ~= 'running' or kept[2] ~= number then
  redis.call('HINCRBY', P .. 'counters', 'late', 1)
  return 0
end
if state == 'succeeded' then
  redis.call('SET', P .. 'image:' .. id, ARGV[6],
    'EX', math.max(math.ceil(tonumber(ARGV[7])), MIN_KEEP_S))
  end_job(id, state, 'outcome', ARGV[5])
else
  end_job(id, state, 'reason', ARGV[4])
end
return 1
