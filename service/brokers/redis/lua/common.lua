-- What the scripts share; put in front of each of them.
-- KEYS[1] is the model's prefix. Undeclared keys all begin with it and so lie on the same node.

local P = KEYS[1]
local GROUP = 'workers'
local MIN_KEEP_S = 60
local MAX_WAKEUPS = 64

local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

local function job_key(id)
  return P .. 'job:' .. id
end

-- Forgets an entry, and the stream with its last one, so that the set of streams stays small.
local function drop_entry(queue, entry)
  redis.call('XACK', queue, GROUP, entry)
  redis.call('XDEL', queue, entry)
  if redis.call('XLEN', queue) == 0 then
    redis.call('DEL', queue)
    redis.call('SREM', P .. 'queues', queue)
  end
end

local function add_entry(queue, id)
  local entry = redis.call('XADD', queue, '*', 'job', id)
  if redis.call('SADD', P .. 'queues', queue) == 1 then
    redis.pcall('XGROUP', 'CREATE', queue, GROUP, '0')
  end
  return entry
end

-- Wakes idle workers for so many jobs of one line: one for each batch. Each wake-up goes to one of
-- those who wait; where nobody does, it stays for whoever would wait next. Busy ones need none: they
-- ask anyway.
local function wake_for(num_jobs)
  local num = 1
  if num_jobs > 1 then
    num = math.ceil(num_jobs / tonumber(redis.call('GET', P .. 'idle_batch') or 1))
  end
  for _ = 1, math.min(num, MAX_WAKEUPS - redis.call('LLEN', P .. 'wakeups')) do
    redis.call('RPUSH', P .. 'wakeups', '1')
  end
end

-- Gives an open job its terminal state, tells those who wait and frees its place.
-- An entry that no worker has taken stays for the next one to drop: deleting it would blind the
-- group's lag, which autoscalers read.
local function end_job(id, state, ...)
  local key = job_key(id)
  local kept = redis.call('HMGET', key, 'queue', 'entry', 'waiters', 'keep_s')
  redis.call('HSET', key, 'state', state, ...)
  redis.call('HDEL', key, 'image')
  redis.call('EXPIRE', key, math.max(math.ceil(tonumber(kept[4] or 0)), MIN_KEEP_S))
  if kept[2] then
    drop_entry(kept[1], kept[2])
  end
  redis.call('ZREM', P .. 'open', id)
  redis.call('ZREM', P .. 'due', id)
  for waiter in string.gmatch(kept[3] or '', '%S+') do
    redis.call('XADD', waiter, 'MAXLEN', '~', '10000', '*', 'job', id)
    redis.call('EXPIRE', waiter, 3600)
  end
end

local function is_open(state)
  return state == 'queued' or state == 'running'
end
