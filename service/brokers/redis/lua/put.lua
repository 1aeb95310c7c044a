-- Accepts all jobs of a request or none.
-- ARGV: max_depth, waiter, number of jobs; then for each job
--       id, body, image, queue, created_s, deadline_s, owner, request, keep_s, digest,
--       whether it has a webhook (0 | 1)
-- -> {'accepted'} | {'known'} | {'mismatch'} | {'full', open jobs}

local FIELDS = 11
-- Longer than any outcome is kept: without it a webhook has nothing to tell.
local WEBHOOKS_KEEP_S = 14 * 86400
local max_depth, waiter, num_jobs = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])

local function field(index, number)
  return ARGV[3 + (index - 1) * FIELDS + number]
end

local digest = redis.call('HGET', job_key(field(1, 1)), 'digest')
if digest then
  return {digest == field(1, 10) and 'known' or 'mismatch'}
end
local num_open = redis.call('ZCARD', P .. 'open')
if num_open + num_jobs > max_depth then
  return {'full', num_open}
end
for index = 1, num_jobs do
  local id, queue, keep_s = field(index, 1), field(index, 4), tonumber(field(index, 9))
  redis.call('HSET', job_key(id),
    'body', field(index, 2), 'image', field(index, 3), 'queue', queue, 'keep_s', keep_s,
    'digest', field(index, 10), 'state', 'queued', 'delivery', 0, 'attempts', 0,
    'waiters', waiter)
  redis.call('ZADD', P .. 'open', field(index, 5), id)
  redis.call('ZADD', P .. 'due', field(index, 6), id)
  if keep_s > 0 then
    local owner = P .. 'owner:' .. field(index, 7)
    redis.call('ZADD', owner, field(index, 5), field(index, 8))
    redis.call('ZREMRANGEBYRANK', owner, 0, -1001)
    redis.call('EXPIRE', owner, math.ceil(keep_s) + 3600)
  end
  if field(index, 11) == '1' then
    redis.call('ZADD', P .. 'webhooks', 0, field(index, 8))
    redis.call('EXPIRE', P .. 'webhooks', WEBHOOKS_KEEP_S)
  end
  add_entry(queue, id)
end
wake_for(num_jobs)
return {'accepted'}
