-- Hands out a batch, by the rules of service/batching.py.
-- ARGV: worker, max_jobs, ageing_s, lease_ms, max_deliveries, whether to look for lost jobs (0 | 1)
-- -> {close reason or '', expired, cancelled, {{id, body, image, delivery, queue, entry} ...},
--     live workers where nothing is left to take, else 0}

local worker, max_jobs, ageing_s = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local lease_ms, max_deliveries, is_looking = ARGV[4], tonumber(ARGV[5]), ARGV[6] == '1'
local time = now()
local num_expired, num_cancelled, taken = 0, 0, {}

redis.call('ZADD', P .. 'workers', time, worker)

local function deliver(id, queue, entry)
  local key = job_key(id)
  local delivery = redis.call('HINCRBY', key, 'delivery', 1)
  redis.call('HINCRBY', key, 'attempts', 1)
  redis.call('HSET', key, 'state', 'running', 'entry', entry, 'worker', worker)
  local kept = redis.call('HMGET', key, 'body', 'image')
  taken[#taken + 1] = {id, kept[1], kept[2] or '', delivery, queue, entry}
end

local function is_late(id)
  local due = redis.call('ZSCORE', P .. 'due', id)
  return due and tonumber(due) <= time
end

local function expire(id, entry)
  redis.call('HSET', job_key(id), 'entry', entry)
  end_job(id, 'expired', 'reason', 'expired')
  num_expired = num_expired + 1
end

-- A job whose worker has shown no sign of life, alone: it may be what ended that worker.
local function take_lost(queue)
  local cursor = '0-0'
  repeat
    local found = redis.call('XAUTOCLAIM', queue, GROUP, worker, lease_ms, cursor, 'COUNT', 1)
    cursor = found[1]
    for _, pair in ipairs(found[2]) do
      local entry, id = pair[1], pair[2][2]
      local kept = redis.call('HMGET', job_key(id), 'state', 'attempts')
      if kept[1] ~= 'running' then
        drop_entry(queue, entry)
      elseif is_late(id) then
        expire(id, entry)
      elseif tonumber(kept[2]) >= max_deliveries then
        end_job(id, 'failed', 'reason', 'deliveries')
        redis.call('HINCRBY', P .. 'counters', 'dead', 1)
        redis.call('XADD', P .. 'dead', 'MAXLEN', '~', '1000', '*',
          'job', id, 'reason', 'deliveries', 'queue', queue)
      else
        deliver(id, queue, entry)
        redis.call('HINCRBY', P .. 'counters', 'redelivered', 1)
        return true
      end
      if redis.call('EXISTS', queue) == 0 then
        return false
      end
    end
  until cursor == '0-0'
  return false
end

-- When the oldest entry that nobody has taken arrived; nil where there is none.
local function head_s(queue)
  local groups = redis.call('XINFO', 'GROUPS', queue)
  local last = '0-0'
  for index = 1, #(groups[1] or {}), 2 do
    if groups[1][index] == 'last-delivered-id' then
      last = groups[1][index + 1]
    end
  end
  local entries = redis.call('XRANGE', queue, '(' .. last, '+', 'COUNT', 1)
  if entries[1] then
    return tonumber(string.match(entries[1][1], '^%d+')) / 1000
  end
end

-- The wake-up that brought this worker here is spent. What it leaves is for another to hear of.
local function wake_next(is_left)
  if redis.call('LLEN', P .. 'wakeups') == 0 and is_left() then
    wake_for(1)
  end
end

local lines = {}
for _, queue in ipairs(redis.call('SMEMBERS', P .. 'queues')) do
  if redis.call('EXISTS', queue) == 0 then
    redis.call('SREM', P .. 'queues', queue)
  else
    if is_looking and take_lost(queue) then
      wake_next(function() return true end)
      return {'redelivery', num_expired, num_cancelled, taken, 0}
    end
    local head = redis.call('EXISTS', queue) == 1 and head_s(queue)
    if head then
      local key, priority, lane = string.match(queue, ':queue:(.*):(%d+):(%d+)$')
      lines[#lines + 1] = {
        queue = queue, key = key, lane = lane, priority = tonumber(priority),
        rank = head + (priority == '0' and 0 or ageing_s),
        served = tonumber(redis.call('HGET', P .. 'served', lane) or 0),
      }
    end
  end
end
if #lines == 0 then
  -- Whoever goes idle next has asked in vain first, so no wake-up is of use to anyone.
  redis.call('DEL', P .. 'wakeups')
  redis.call('SET', P .. 'idle_batch', max_jobs)
  return {'', num_expired, num_cancelled, taken, redis.call('ZCARD', P .. 'workers')}
end

table.sort(lines, function(a, b) return a.rank < b.rank end)
local priority, chosen = lines[1].priority, nil
for _, line in ipairs(lines) do
  if line.priority == priority and (not chosen or line.served < chosen.served) then
    chosen = line
  end
end
table.sort(lines, function(a, b)
  if a.served ~= b.served then return a.served < b.served end
  return a.rank < b.rank
end)

-- One entry of each lane in turn; all at once where there is one lane only.
local function fill(of_priority)
  local turn = {}
  for _, line in ipairs(lines) do
    if line.key == chosen.key and (line.priority == priority) == of_priority then
      turn[#turn + 1] = line
    end
  end
  while #turn > 0 and #taken < max_jobs do
    local line = table.remove(turn, 1)
    local count = #turn == 0 and max_jobs - #taken or 1
    local read = redis.call(
      'XREADGROUP', 'GROUP', GROUP, worker, 'COUNT', count, 'STREAMS', line.queue, '>')
    if read then
      for _, pair in ipairs(read[1][2]) do
        local entry, id = pair[1], pair[2][2]
        if redis.call('HGET', job_key(id), 'state') ~= 'queued' then
          drop_entry(line.queue, entry)
          num_cancelled = num_cancelled + 1
        elseif is_late(id) then
          expire(id, entry)
        else
          deliver(id, line.queue, entry)
        end
      end
      redis.call('HSET', P .. 'served', line.lane, redis.call('INCR', P .. 'turn'))
      if redis.call('EXISTS', line.queue) == 1 then
        turn[#turn + 1] = line
      end
    end
  end
end

fill(true)
fill(false)
wake_next(function()
  for _, line in ipairs(lines) do
    if line.key ~= chosen.key then
      return true
    end
    if #taken >= max_jobs and redis.call('EXISTS', line.queue) == 1 and head_s(line.queue) then
      return true
    end
  end
  return false
end)
local reason = #taken == 0 and '' or #taken >= max_jobs and 'full' or 'no_more'
return {reason, num_expired, num_cancelled, taken, 0}
