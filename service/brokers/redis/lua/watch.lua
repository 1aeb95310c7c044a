-- Adds a process to those who hear of jobs' ends.
-- ARGV: waiter, id ...
-- -> for each id 'unknown' | 'open' | 'ended'

local waiter, answer = ARGV[1], {}
for index = 2, #ARGV do
  local key = job_key(ARGV[index])
  local kept = redis.call('HMGET', key, 'state', 'waiters')
  if not kept[1] then
    answer[index - 1] = 'unknown'
  elseif is_open(kept[1]) then
    if not string.find(' ' .. kept[2] .. ' ', ' ' .. waiter .. ' ', 1, true) then
      redis.call('HSET', key, 'waiters', kept[2] .. ' ' .. waiter)
    end
    answer[index - 1] = 'open'
  else
    answer[index - 1] = 'ended'
  end
end
return answer
