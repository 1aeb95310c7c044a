-- Ends what is overdue and says how full the queue is.
-- ARGV: seconds after which a silent worker counts as gone
-- -> {open jobs, arrival of the oldest or '', ended now, live workers, last sign of life of the
--     most silent or '', redelivered, dead, late}

local time, num_expired = now(), 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'due', '-inf', time, 'LIMIT', 0, 200)) do
  if is_open(redis.call('HGET', job_key(id), 'state')) then
    end_job(id, 'expired', 'reason', 'expired')
    num_expired = num_expired + 1
  else
    redis.call('ZREM', P .. 'due', id)
    redis.call('ZREM', P .. 'open', id)
  end
end
redis.call('ZREMRANGEBYSCORE', P .. 'workers', '-inf', time - tonumber(ARGV[1]))
local oldest = redis.call('ZRANGE', P .. 'open', 0, 0, 'WITHSCORES')
local silent = redis.call('ZRANGE', P .. 'workers', 0, 0, 'WITHSCORES')
local counts = redis.call('HMGET', P .. 'counters', 'redelivered', 'dead', 'late')
return {
  redis.call('ZCARD', P .. 'open'), oldest[2] or '', num_expired,
  redis.call('ZCARD', P .. 'workers'), silent[2] or '',
  tonumber(counts[1] or 0), tonumber(counts[2] or 0), tonumber(counts[3] or 0),
}
